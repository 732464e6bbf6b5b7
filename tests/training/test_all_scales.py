"""All-scales training is a way of packing: equal to M3's published loop, and to the same batch
unpacked.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from tiny_models import DECODERS, MOE

from m3.bench.published import published_batches, published_loss
from m3.data.collate import Collator
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.packed_attention import PACKED_ATTENTION
from m3.processing import M3Processor

SCALES = (1, 4, 9, 36, 144)
Make = Callable[..., M3ForConditionalGeneration]


def gradients(model: M3ForConditionalGeneration, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    difference = torch.cat([(ours[n] - theirs[n]).flatten() for n in ours]).norm()
    return float(difference / torch.cat([g.flatten() for g in theirs.values()]).norm())


@pytest.mark.parametrize("attention", ["sdpa", PACKED_ATTENTION])
@pytest.mark.parametrize("decoder", DECODERS)
def test_packed_all_scales_gradients_equal_the_published_loop(
    decoder: str, attention: str, make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    """Measured: 3e-7 to 9e-7 (float32).

    MoE decoders with balance and z losses over all scales together.
    """
    model = make_tuned(decoder).train()
    packed = Collator(processor, scales="all", pack_length=1024)(samples)
    assert len(packed["pixel_values"]) == 4, "each different image once"
    assert len(packed["image_scales"]) == 5 * 5, "five spans at five scales"
    assert len(packed["input_ids"]) < 4 * 5, "sequences share rows"
    model.model.language_model.set_attn_implementation(attention)
    output = model(**packed)
    ours = gradients(model, output.loss)
    model.model.language_model.set_attn_implementation("sdpa")
    loop = published_loss(model, published_batches(samples, processor, SCALES))
    theirs = gradients(model, loop)
    assert abs(output.loss.item() - loop.item()) < 1e-5
    assert relative_error(ours, theirs) < 1e-5
    assert output.scales.tolist() == list(SCALES)
    assert len(set(output.scale_loss_counts.tolist())) == 1


def test_a_text_only_sample_goes_in_once_with_full_weight(
    make_tuned: Make, processor: M3Processor, samples: list[Sample], text_sample: Sample
) -> None:
    model = make_tuned("llama").train()
    mixed = [*samples, text_sample]
    output = model(**Collator(processor, scales="all", pack_length=1024)(mixed))
    ours = gradients(model, output.loss)
    theirs = gradients(model, published_loss(model, published_batches(mixed, processor, SCALES)))
    assert relative_error(ours, theirs) < 1e-5
    assert output.scales.tolist() == [0, *SCALES]


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_ATTENTION])
@pytest.mark.parametrize("decoder", DECODERS)
def test_packed_equals_unpacked(
    decoder: str,
    attention: str,
    make_tuned: Make,
    processor: M3Processor,
    samples: list[Sample],
    text_sample: Sample,
) -> None:
    model = make_tuned(decoder)
    model.model.language_model.set_attn_implementation(attention)
    mixed = [*samples, text_sample]
    packed = Collator(processor, scales="all", pack_length=700)(mixed)
    unpacked = Collator(processor, scales="all")(mixed)
    with torch.no_grad():
        one, other = model(**packed), model(**unpacked)
    logits, expected = (
        sorted_label_logits(packed, one.logits),
        sorted_label_logits(unpacked, other.logits),
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.scale_loss_sums, other.scale_loss_sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(one.scale_loss_counts, other.scale_loss_counts)
    if decoder in MOE:  # padding is left out of both
        torch.testing.assert_close(one.balance_losses, other.balance_losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.expert_load, other.expert_load)


@pytest.mark.parametrize("attention", ["sdpa", PACKED_ATTENTION])
@pytest.mark.parametrize("decoder", MOE)
def test_a_padding_token_that_sequences_end_with_is_still_counted(
    decoder: str, attention: str, make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    """Many tokenizers pad with the token that ends an answer (pad = eos)."""
    same = copy.deepcopy(processor)
    same.tokenizer.pad_token = same.tokenizer.eos_token
    model = make_tuned(decoder)
    model.config.text_config.pad_token_id = same.tokenizer.pad_token_id
    model.model.language_model.set_attn_implementation(attention)
    packed, padded = Collator(same, pack_length=600)(samples), Collator(same)(samples)
    assert int(packed["sequence_lengths"].sum()) == int(padded["attention_mask"].sum())
    assert (packed["input_ids"] == same.tokenizer.pad_token_id).sum() > len(packed["input_ids"])
    with torch.no_grad():
        one, other = model(**packed), model(**padded)
    torch.testing.assert_close(one.balance_losses, other.balance_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.z_losses, other.z_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.expert_load, other.expert_load)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-5, atol=1e-6)


def sorted_label_logits(batch: dict[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """Logits at label positions, in an order that does not depend on the packing."""
    found = logits[:, :-1][batch["labels"][:, 1:] != -100]
    return found[torch.argsort(found[:, 0].double() * 1e3 + found[:, 1].double())]


def test_a_cache_would_leak_across_packed_sequences_so_none_is_made(
    make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    """transformers mixes packed sequences once a cache exists; `forward` makes none unless asked
    to.
    """
    model = make_tuned("aria_text")
    packed = Collator(processor, scales="all", pack_length=1024)(samples)
    with torch.no_grad():
        assert model(**packed).past_key_values is None
        leaking = model(**packed, use_cache=True)
        assert (leaking.logits - model(**packed).logits).abs().max() > 1e-3, (
            "if this holds no more, drop the warning"
        )


@pytest.mark.parametrize("decoder", MOE)
def test_router_and_experts_receive_gradients(
    decoder: str, make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    model = make_tuned(decoder).train()
    found = gradients(
        model, model(**Collator(processor, scales="all", pack_length=1024)(samples)).loss
    )
    wanted = [
        n for n in found if ".experts." in n or n.endswith((".router.weight", "mlp.gate.weight"))
    ]
    assert len(wanted) == 2 * 3, wanted
    assert all(found[name].abs().sum() > 0 for name in wanted)


def test_micro_batches_divide_by_the_whole_step(
    make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    model = make_tuned("llama").train()
    collate = Collator(processor, scales="all", pack_length=1024)
    whole = gradients(model, model(**collate(samples)).loss)
    parts = [collate(samples[:1]), collate(samples[1:])]
    total = sum(weight_sum(batch) for batch in parts)
    split = gradients(model, sum(model(**b, num_items_in_batch=total).loss for b in parts))
    assert relative_error(split, whole) < 1e-5


@pytest.mark.parametrize("decoder", MOE)
def test_router_losses_of_micro_batches_add_up_to_those_of_the_step(
    decoder: str,
    make_tuned: Make,
    processor: M3Processor,
    samples: list[Sample],
    text_sample: Sample,
) -> None:
    """With the load of the step before, whatever the split; the step's own load gives a batch's
    own balance loss.
    """
    model = make_tuned(decoder).train()
    collate = Collator(processor, scales="all", pack_length=1024)
    mixed = [*samples, text_sample]
    plain = model(**collate(mixed))
    total = int(collate(mixed)["sequence_lengths"].sum())
    options = {"router_tokens": torch.tensor(float(total)), "router_load": plain.expert_load}
    own = model(**collate(mixed), **options)
    torch.testing.assert_close(own.balance_losses, plain.balance_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.z_losses, plain.z_losses, rtol=1e-5, atol=1e-6)

    options["router_load"] = torch.rand_like(plain.expert_load).softmax(-1)
    weights = torch.tensor(float(weight_sum(collate(mixed))))
    whole = gradients(model, model(**collate(mixed), num_items_in_batch=weights, **options).loss)
    parts = [collate(mixed[:1]), collate(mixed[1:4]), collate(mixed[4:])]
    assert {"pixel_values" in part for part in parts} == {True, False}, "one of them has text alone"
    split = gradients(
        model, sum(model(**p, num_items_in_batch=weights, **options).loss for p in parts)
    )
    assert relative_error(split, whole) < 1e-5


def weight_sum(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the label tokens, as the loss of a step is divided by it."""
    return batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum()
