"""Packed attention computes what each sequence would be alone, whatever a decoder adds to
attention.
"""

import itertools

import pytest
import torch
from tiny_models import DECODERS, batch, make_model, prompt
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    chunked_causal_mask_function,
    packed_sequence_compatibility_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from m3.model import packed_attention
from m3.model.packed_attention import PACKED_ATTENTION, MaskRule, Scores, packed_mask
from m3.model.packed_sequences import PackedSequences, real_tokens
from m3.model.packing_check import choose_packed_attention
from m3.training.setup.compiling import compile_layers

BASE = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED, HEADS = {"num_key_value_heads": 2}, {"num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 5}
KINDS: dict[str, dict] = {
    "llama": GROUPED,
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": HEADS,
    "mistral": GROUPED | WINDOW,
    "gemma": HEADS,
    "gemma2": HEADS | WINDOW | {"attn_logit_softcapping": 2.0},
    "gemma3_text": HEADS | WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "phi3": GROUPED | WINDOW,
    "olmo2": {},
    "olmo3": WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "cohere": GROUPED,
    "granite": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen3_moe": HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "gpt_oss": HEADS | WINDOW | {"num_local_experts": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": HEADS
    | {"num_local_experts": 4, "attention_chunk_size": 5, "layer_types": ["chunked_attention", "full_attention"]},
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
        "n_routed_experts": 8, "n_group": 2,
        "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    },
}  # fmt: skip
LEAKING: dict[str, dict] = {
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {},
    "minimax": HEADS | {"num_local_experts": 4},
    "qwen3_next": HEADS
    | {
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }
    | {
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
LENGTHS = torch.tensor([[9, 1, 6], [13, 0, 0]])
ROW = 20


def make_decoder(kind: str, **changes) -> PreTrainedModel:
    """Random weights, large enough that every part moves the states."""
    torch.manual_seed(0)
    decoder = AutoModel.from_config(CONFIG_MAPPING[kind](**(BASE | KINDS[kind] | changes)))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.3)
    return decoder.eval()


def read_packed(decoder: PreTrainedModel, embeds: Tensor, lengths: Tensor = LENGTHS) -> Tensor:
    """States of the sequences one behind the other, out of rows."""
    packed = PackedSequences.from_lengths(lengths, embeds.shape[1])
    positions = torch.cat([torch.arange(length) for length in packed.lengths])[None]
    arguments = packed.decoder_arguments()
    return decoder(
        inputs_embeds=packed.take(embeds), position_ids=positions, use_cache=False, **arguments
    ).last_hidden_state


def read_alone(decoder: PreTrainedModel, embeds: Tensor) -> Tensor:
    """The same, each sequence by itself."""
    rows = [
        row.split([*(n for n in lengths if n), ROW - sum(lengths)])
        for row, lengths in zip(embeds, LENGTHS.tolist(), strict=True)
    ]
    sequences = [part for row in rows for part in row[:-1]]
    states = [
        decoder(inputs_embeds=part[None], use_cache=False).last_hidden_state for part in sequences
    ]
    return torch.cat(states, dim=1)


def gradients(decoder: PreTrainedModel, states: Tensor, embeds: Tensor) -> Tensor:
    """Of all parameters and of the embeddings, in a row."""
    decoder.zero_grad()
    embeds.grad = None
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    own = [p.grad.flatten() for p in decoder.parameters() if p.grad is not None]
    return torch.cat([*own, embeds.grad.flatten()])


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_sequences_alone(kind: str) -> None:
    """Measured: 1e-7 to 2e-6 relative, float32.

    Windows and chunks of 5 are shorter than the sequences.
    """
    decoder = make_decoder(kind)
    embeds = torch.randn(2, ROW, 32, requires_grad=True)
    alone = read_alone(decoder, embeds)
    expected = gradients(decoder, alone, embeds)
    decoder.set_attn_implementation(PACKED_ATTENTION)
    packed = read_packed(decoder, embeds)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    difference = gradients(decoder, packed, embeds) - expected
    assert difference.norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss", "gemma3_text"])
def test_nothing_depends_on_the_neighbour_or_on_padding(kind: str) -> None:
    decoder = make_decoder(kind)
    decoder.set_attn_implementation(PACKED_ATTENTION)
    embeds = torch.randn(2, ROW, 32)
    other = embeds.clone()
    other[0, :9] += 1.0
    other[0, 16:] += 1.0
    first, second = read_packed(decoder, embeds), read_packed(decoder, other)
    assert torch.equal(first[:, 9:], second[:, 9:])
    assert not torch.equal(first[:, :9], second[:, :9])


@pytest.mark.parametrize("kind", [*KINDS, *LEAKING])
def test_the_trial_knows_which_decoders_keep_sequences_apart(kind: str) -> None:
    choice = choose_packed_attention(CONFIG_MAPPING[kind](**(BASE | (KINDS | LEAKING)[kind])))
    assert choice.implementation == (None if kind in LEAKING else PACKED_ATTENTION)
    assert not choice.refused if kind in KINDS else len(choice.refused) == 2


@pytest.mark.parametrize(("kind", "native"), [("gpt_neo", "eager"), ("codegen", "eager")])
def test_a_decoder_with_attention_of_its_own_falls_back_to_masks(kind: str, native: str) -> None:
    options = (
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}
        if kind == "gpt_neo"
        else {"rotary_dim": 4}
    )
    choice = choose_packed_attention(CONFIG_MAPPING[kind](**(BASE | options)))
    assert choice.implementation == native
    assert choice.refused == {PACKED_ATTENTION: "the decoder has an attention of its own"}


def test_the_trial_leaves_random_numbers_and_configuration_alone() -> None:
    config = CONFIG_MAPPING["gpt_oss"](**(BASE | KINDS["gpt_oss"]))
    before, text = torch.get_rng_state(), config.to_json_string()
    choose_packed_attention(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert config.to_json_string() == text


RULES = {
    "causal": (causal_mask_function, None),
    "window of 3": (sliding_window_causal_mask_function(3), 3),
    "window of 70": (sliding_window_causal_mask_function(70), 70),
    "chunks of 6": (chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.long)), 6),
    "chunks of 80": (chunked_causal_mask_function(80, torch.zeros(1, dtype=torch.long)), 80),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lengths", [(1, 2, 3), (150, 7, 65, 64, 1), (200,)])
def test_strips_of_a_rule_equal_the_whole_mask(rule: str, lengths: tuple[int, ...]) -> None:
    function, local_size = RULES[rule]
    total = sum(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    numbers = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])[None]
    function = packed_sequence_compatibility_function(function, positions, numbers)
    whole = sdpa_mask(1, total, total, mask_function=function, allow_is_causal_skip=False)
    mask = packed_mask(
        1,
        total,
        total,
        mask_function=function,
        local_size=local_size,
        allow_is_causal_skip=False,
        device=torch.device("cpu"),
    )
    assert isinstance(mask, MaskRule)
    assert torch.equal(mask.dense(), whole)
    query, key, value = (torch.randn(1, 2, total, 8) for _ in range(3))
    expected = scaled_dot_product_attention(query, key, value, whole).transpose(1, 2)
    packed = PackedSequences.from_lengths(torch.tensor([lengths]), total)
    output, _ = packed_attention.packed_attention(
        torch.nn.Module(), query, key, value, mask, packed=packed
    )
    torch.testing.assert_close(output, expected)
    widest = max(
        strip.end - strip.first for start in [0] for strip in mask.strips(start, lengths[0])
    )
    if local_size is not None and lengths[0] > local_size:
        assert widest <= max(local_size, 64) + local_size, (
            "a window costs its width, not the length"
        )


@pytest.mark.parametrize("kind", ["gemma3_text", "llama4_text", "llama"])
def test_a_row_whose_sequences_are_told_by_positions_alone_is_masked_whole(kind: str) -> None:
    decoder = make_decoder(kind)
    embeds = torch.randn(1, 16, 32)
    positions = torch.cat([torch.arange(10), torch.arange(6)])[None]
    with torch.no_grad():
        expected = decoder(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state
        decoder.set_attn_implementation(PACKED_ATTENTION)
        found = decoder(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
@pytest.mark.parametrize("strip", [4, 1024])
def test_scores_written_out_equal_the_formula(
    softcap: float | None, sinks: Tensor | None, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "STRIP", strip)
    query, key, value = torch.randn(1, 4, 11, 8), torch.randn(1, 2, 11, 8), torch.randn(1, 2, 11, 8)
    scores = (query @ key.repeat_interleave(2, 1).transpose(2, 3)) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~torch.ones(11, 11, dtype=torch.bool).tril(), -torch.inf)
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp().view(1, 4, 1, 1))
    expected = weights / total @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(
        Scores(0.3, 0.0, softcap, sinks).attend(query, key, value, None), expected
    )
    mask = torch.ones(1, 1, 11, 11, dtype=torch.bool).tril()
    torch.testing.assert_close(
        Scores(0.3, 0.0, softcap, sinks).attend(query, key, value, mask), expected
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_generation_is_as_with_transformers_own_attention(decoder: str, pixels: Tensor) -> None:
    model = make_model(decoder=decoder)
    inputs = batch([prompt(4, 10, 11), prompt(9, 7)]) | {
        "pixel_values": pixels[:2],
        "image_scales": torch.tensor([4, 9]),
    }
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), expected)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "aria_text"])
def test_under_checkpointing_and_compilation(kind: str) -> None:
    """Lengths change from batch to batch without a new graph for each."""
    decoder = make_decoder(kind)
    decoder.set_attn_implementation(PACKED_ATTENTION)
    embeds = torch.randn(2, ROW, 32, requires_grad=True)
    expected = gradients(decoder, read_packed(decoder, embeds), embeds)
    decoder.train()
    decoder.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(decoder, read_packed(decoder, embeds), embeds), expected)
    decoder.gradient_checkpointing_disable()
    torch._dynamo.reset()
    compile_layers(decoder, backend="eager")
    torch.testing.assert_close(gradients(decoder, read_packed(decoder, embeds), embeds), expected)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in itertools.permutations([5, 8, 3]):
            read_packed(decoder, embeds, torch.tensor([lengths, lengths[::-1]]))


def test_padding_is_known_by_place() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    lengths, mask = torch.tensor([[2, 1], [5, 0]]), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert real_tokens(ids, None, lengths).tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert real_tokens(ids, mask, None).sum(1).tolist() == [2, 5]
    assert real_tokens(ids, None, None).all()


def test_rows_without_a_sequence_are_read_as_one() -> None:
    packed = PackedSequences.from_lengths(torch.tensor([[0], [0]]), 4)
    assert (packed.lengths, packed.places, packed.longest) == ((8,), None, 8)


@pytest.mark.parametrize("lengths", [[[3, 2]], [[5, -1]]])
def test_lengths_that_no_row_has_are_refused(lengths: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="row 0 has 4 places, and its sequence_lengths"):
        PackedSequences.from_lengths(torch.tensor(lengths), 4)


def test_lengths_need_positions() -> None:
    model = make_model(decoder="llama")
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(ValueError, match="sequence_lengths need position_ids"):
        model(input_ids=torch.tensor([[5, 6, 7]]), sequence_lengths=torch.tensor([[3]]))


def test_packed_rows_have_no_cache() -> None:
    model = make_model(decoder="llama")
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)
    rows = {"input_ids": torch.tensor([[5, 6, 7]]), "position_ids": torch.tensor([[0, 1, 0]])}
    with pytest.raises(ValueError, match="packed rows .sequence_lengths. have no cache"):
        model(**rows, sequence_lengths=torch.tensor([[2, 1]]), use_cache=True)


def test_what_is_not_honoured_is_refused() -> None:
    states = torch.randn(1, 2, 3, 4)
    with pytest.raises(
        ValueError,
        match="does not compute position_bias of Module: set hardware.attention to eager",
    ):
        packed_attention.packed_attention(
            torch.nn.Module(), states, states, states, None, position_bias=states
        )


def test_transformers_knows_it_by_name() -> None:
    assert PACKED_ATTENTION in ALL_MASK_ATTENTION_FUNCTIONS


def test_dropout_is_not_left_to_a_kernel_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's variable-length kernel, which is CUDA's, drops nothing out."""

    def all_at_once(rows: list[Tensor], *_: object) -> Tensor:
        return torch.zeros_like(rows[0])

    monkeypatch.setattr(packed_attention, "_varlen_window", lambda *_: (-1, 0))
    monkeypatch.setattr(packed_attention, "_all_at_once", all_at_once)
    packed = PackedSequences.from_lengths(torch.tensor([[3, 5]]), 8)
    states = torch.ones(1, 2, 8, 4)

    def attend(dropout: float) -> Tensor:
        attend = packed_attention.packed_attention
        return attend(
            torch.nn.Identity(), states, states, states, None, dropout=dropout, packed=packed
        )[0]

    assert not attend(0.0).any()
    assert attend(0.5).any()


def test_generation_with_a_static_cache_of_one_place_has_no_rows() -> None:
    """A window of one token: a query and its key alone, as in a packed row of one token."""
    model = make_model(
        text_config={"model_type": "mistral", **BASE, **GROUPED, "sliding_window": 1}
    )
    options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(torch.tensor([[5, 6, 7]]), **options)
    model.model.language_model.set_attn_implementation(PACKED_ATTENTION)
    assert torch.equal(model.generate(torch.tensor([[5, 6, 7]]), **options), expected)
