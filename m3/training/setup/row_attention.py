"""The attention that a run computes its rows with: the recipe's, or the best one that keeps packed
sequences apart.

in: a recipe and the configuration of its model; out: the name for `set_attn_implementation`, and a
    line for the plan.
"""

from dataclasses import dataclass

from m3.model import M3Config
from m3.model.packed_attention import takes_sequences
from m3.model.packing_check import choose_packed_attention, packing_refusal
from m3.training.recipe.recipe import Recipe


@dataclass(frozen=True)
class RowAttention:
    """`implementation` of the decoder, None for transformers' choice; `reason`: how rows are
    computed, and why so.
    """

    implementation: str | None
    reason: str


def choose_row_attention(recipe: Recipe, config: M3Config) -> RowAttention:
    """Choose the attention of this run's decoder.

    Raises:
        ValueError: rows are to be packed, and no attention of this decoder keeps their sequences
            apart.
    """
    decoder, is_packed = config.text_config, recipe.data.pack_length is not None
    given_attention = recipe.hardware.attention
    if given_attention is not None:
        refusal = packing_refusal(decoder, given_attention) if is_packed else None
        if refusal is not None:
            raise ValueError(
                f"hardware.attention: {given_attention} cannot compute packed rows of this "
                f"{decoder.model_type} decoder: {refusal}. Leave "
                "hardware.attention out, or set data.pack_length to null (a row for each sequence)"
            )
        return RowAttention(given_attention, _how(given_attention))
    packed_choice = choose_packed_attention(decoder, recipe.hardware.precision == "bfloat16")
    reasons = "; ".join(
        f"{attention_name}: {refusal_reason}"
        for attention_name, refusal_reason in packed_choice.refused.items()
    )
    if packed_choice.implementation is not None:
        return RowAttention(
            packed_choice.implementation,
            _how(packed_choice.implementation) + (f" ({reasons})" if reasons else ""),
        )
    if is_packed:
        raise ValueError(
            "data.pack_length: no attention keeps the packed sequences of this "
            f"{decoder.model_type} decoder apart ({reasons}). "
            "Set data.pack_length to null (a row for each sequence)"
        )
    return RowAttention(None, "transformers' own, with padded rows")


def _how(implementation: str) -> str:
    if takes_sequences(implementation):
        return f"{implementation}, each sequence by itself"
    return f"{implementation}, a mask over whole rows"
