"""A run takes the attention that keeps its packed sequences apart, or says why it cannot."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import make_config

from m3.config import load
from m3.model import M3Config
from m3.training.checks.dry_run import plan
from m3.training.recipe.recipe import Recipe
from m3.training.setup.build import build
from m3.training.setup.resolved import ResolvedRun
from m3.training.setup.row_attention import choose_row_attention

BLOOM = {"model_type": "bloom", "n_layer": 1, "n_head": 4, "hidden_size": 32, "vocab_size": 96}


def changed(recipe: Path, attention: str | None = None, pack_length: int | None = 512) -> Recipe:
    spec = load(recipe, Recipe)
    hardware = replace(spec.hardware, attention=attention)
    return replace(spec, hardware=hardware, data=replace(spec.data, pack_length=pack_length))


def bloom() -> M3Config:
    return make_config(text_config=BLOOM)


def test_packed_attention_by_default_and_in_the_plan(recipe: Path) -> None:
    spec = changed(recipe)
    assert "attention       packed, each sequence by itself" in plan(ResolvedRun(spec))
    model, _ = build(ResolvedRun(spec))
    assert model.model.language_model.config._attn_implementation == "packed"
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["sdpa", "eager", "packed"])
def test_the_recipes_choice_is_taken(recipe: Path, attention: str) -> None:
    model, _ = build(ResolvedRun(changed(recipe, attention)))
    assert model.model.language_model.config._attn_implementation == attention
    assert model.model.vision_tower.config._attn_implementation == (
        "sdpa" if attention == "packed" else attention
    )


def test_a_decoder_that_mixes_packed_sequences_is_refused(recipe: Path) -> None:
    message = "no attention keeps the packed sequences of this bloom decoder apart .*eager: a sequence changes by"
    with pytest.raises(ValueError, match=f"{message} .*data.pack_length to null"):
        choose_row_attention(changed(recipe), bloom())
    with pytest.raises(
        ValueError,
        match="hardware.attention: eager cannot compute packed rows of this bloom decoder",
    ):
        choose_row_attention(changed(recipe, "eager"), bloom())
    assert choose_row_attention(changed(recipe, pack_length=None), bloom()).implementation is None


def test_why_a_decoder_falls_back_is_said(recipe: Path) -> None:
    text = {
        "model_type": "codegen",
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 4,
        "rotary_dim": 4,
        "vocab_size": 96,
    }
    choice = choose_row_attention(changed(recipe), make_config(text_config=text))
    assert (
        choice.reason
        == "eager, a mask over whole rows (packed: the decoder has an attention of its own)"
    )


def test_a_decoder_that_cannot_be_tried_is_refused_in_words(recipe: Path) -> None:
    """Widths that do not fit: the small copy of it fails as the decoder would."""
    text = {
        "model_type": "deepseek_v3",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 96,
    }
    odd = text | {
        "qk_rope_head_dim": 6,
        "qk_nope_head_dim": 7,
        "q_lora_rank": 4,
        "kv_lora_rank": 4,
        "head_dim": 3,
    }
    config = make_config(text_config=odd)
    with pytest.raises(
        ValueError,
        match="no attention keeps .* deepseek_v3 decoder apart .a trial: no small copy "
        ".*RuntimeError",
    ):
        choose_row_attention(changed(recipe), config)
    with pytest.raises(
        ValueError, match="hardware.attention: sdpa cannot compute packed rows .* no small copy"
    ):
        choose_row_attention(changed(recipe, "sdpa"), config)
    assert choose_row_attention(changed(recipe, pack_length=None), config).implementation is None


def test_an_attention_that_does_not_exist_is_refused_by_its_name(recipe: Path) -> None:
    with pytest.raises(ValueError, match="flash_atention"):
        build(ResolvedRun(changed(recipe, "flash_atention")))
    with pytest.raises(ValueError, match="flash_atention"):
        build(ResolvedRun(changed(recipe, "flash_atention", pack_length=None)))
