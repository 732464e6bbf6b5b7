"""What transformers' users ask of a model beside logits: hidden states, attentions, embeddings,
tuples.
"""

import pytest
import torch
from tiny_models import MOE, batch, make_model, prompt
from torch import Tensor

from m3.model.packed_attention import PACKED_ATTENTION

DECODERS = ("llama", "aria_text")


def inputs_of(pixels: Tensor) -> dict[str, Tensor]:
    return batch([prompt(4, 10, 11), prompt(9, 7)]) | {
        "pixel_values": pixels[:2],
        "image_scales": torch.tensor([4, 9]),
    }


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_hidden_states_are_those_of_the_decoder(decoder: str, pixels: Tensor) -> None:
    model, inputs = make_model(decoder=decoder), inputs_of(pixels)
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.text_config.num_hidden_layers + 1
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert model(**inputs).hidden_states is None
    model.config.output_hidden_states = True
    assert torch.equal(model(**inputs).hidden_states[1], output.hidden_states[1])
    assert model(**inputs, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_attentions_need_eager(decoder: str, pixels: Tensor) -> None:
    model, inputs = make_model(decoder=decoder), inputs_of(pixels)
    with pytest.raises(ValueError, match="the attention 'sdpa' does not write its weights out"):
        model(**inputs, output_attentions=True)
    model.set_attn_implementation("eager")
    attentions = model(**inputs, output_attentions=True).attentions
    length = inputs["input_ids"].shape[1]
    heads = model.config.text_config.num_attention_heads
    assert [tuple(weights.shape) for weights in attentions] == [(2, heads, length, length)] * 2
    torch.testing.assert_close(attentions[0].sum(-1)[inputs["attention_mask"].bool()[:, None].expand(-1, heads, -1)],
                               torch.ones(int(inputs["attention_mask"].sum()) * heads))  # fmt: skip


@torch.no_grad()
def test_generate_gives_them_too(pixels: Tensor) -> None:
    model = make_model(decoder="llama")
    model.set_attn_implementation("eager")
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    output = model.generate(
        **inputs_of(pixels), **options, output_hidden_states=True, output_attentions=True
    )
    assert len(output.hidden_states) == len(output.attentions) == 3
    assert output.hidden_states[0][0].shape[:2] == inputs_of(pixels)["input_ids"].shape
    assert [states[-1].shape[1] for states in output.hidden_states[1:]] == [1, 1]


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_embeddings_instead_of_ids(decoder: str, pixels: Tensor) -> None:
    model, inputs = make_model(decoder=decoder), inputs_of(pixels)
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["inputs_embeds"]), with_kwargs=True
    )
    expected = model(**inputs).logits
    hook.remove()
    mask = inputs["attention_mask"]
    torch.testing.assert_close(model(inputs_embeds=seen[0], attention_mask=mask).logits, expected)
    options = {"max_new_tokens": 4, "do_sample": False}
    written = model.generate(inputs_embeds=seen[0], attention_mask=mask, **options)
    assert torch.equal(
        written, model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    )
    labels = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == model.config.image_token_id, -100
    )
    losses = [
        model(**given, labels=labels).loss
        for given in (inputs, {"inputs_embeds": seen[0], "attention_mask": mask})
    ]
    torch.testing.assert_close(*losses)


def test_what_contradicts_itself_is_refused(pixels: Tensor) -> None:
    model, embeds = make_model(decoder="llama"), torch.randn(1, 3, 32)
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds, not both"):
        model(input_ids=torch.tensor([[5, 6, 7]]), inputs_embeds=embeds)
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="images need input_ids"):
        model(inputs_embeds=embeds, pixel_values=pixels[:1], image_scales=torch.tensor([4]))


@torch.no_grad()
def test_a_tuple_instead_of_an_output(pixels: Tensor) -> None:
    model, inputs = make_model(decoder="llama"), inputs_of(pixels)
    expected = model(**inputs).logits
    answer = model(**inputs, return_dict=False)
    assert isinstance(answer, tuple)
    assert torch.equal(answer[0], expected)
    loss, logits = model(
        **inputs, labels=inputs["input_ids"], return_dict=False, skip_logits=False
    )[:2]
    assert loss.dim() == 0
    assert torch.equal(logits, expected)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@pytest.mark.parametrize("decoder", MOE)
@torch.no_grad()
def test_hidden_states_of_packed_rows_stand_where_their_tokens_stand(decoder: str) -> None:
    model = make_model(decoder=decoder)
    ids = torch.tensor([[5, 6, 7, 8, 0, 0]])
    rows = {
        "input_ids": ids,
        "position_ids": torch.tensor([[0, 1, 0, 1, 0, 1]]),
        "sequence_lengths": torch.tensor([[2, 2]]),
    }
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)
    packed = model(**rows, output_hidden_states=True).hidden_states
    alone = model(input_ids=ids[:, 2:4], output_hidden_states=True).hidden_states
    for states, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(states[:, 2:4], expected, rtol=1e-4, atol=1e-5)
