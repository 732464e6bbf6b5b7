"""Building what a recipe names: the model and its processor agree on what is padding."""

import copy
from pathlib import Path

import pytest
import torch

from m3.config import load
from m3.data.collate import Collator
from m3.training.recipe.recipe import Recipe
from m3.training.setup.build import build, train_at
from m3.training.setup.resolved import ResolvedRun


def test_what_rows_are_filled_with_has_no_part_in_router_losses(
    make_tuned, processor, samples
) -> None:
    """Padding is known by its place, whatever token it is made of: also where the tokenizer pads
    with what ends a sequence.
    """
    # train_at changes its scales
    model, processor = (make_tuned("aria_text"), copy.deepcopy(processor))
    model.config.text_config.pad_token_id = None
    train_at(model, processor, (1, 9))
    assert model.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    short, long = (
        model(
            **Collator(processor, scales=(1, 9), pack_length=512, pad_to_multiple_of=multiple)(
                samples[:1]
            )
        )
        for multiple in (8, 256)
    )
    assert torch.allclose(short.z_losses, long.z_losses, rtol=1e-5)
    assert torch.allclose(short.expert_load, long.expert_load)


@pytest.mark.parametrize("place", ["new_model.config", "new_model.config.text_config"])
def test_tied_tables_may_be_said_in_either_place(place: str, recipe: Path) -> None:
    spec = load(recipe, Recipe, [f"{place}.tie_word_embeddings=true"])
    model, _ = build(ResolvedRun(spec))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_tied_tables_are_said_once(recipe: Path) -> None:
    said = [
        "new_model.config.tie_word_embeddings=true",
        "new_model.config.text_config.tie_word_embeddings=false",
    ]
    with pytest.raises(
        ValueError, match="tie_word_embeddings is True, and False in its text_config; say it once"
    ):
        build(ResolvedRun(load(recipe, Recipe, said)))
