"""`context` in a recipe: more positions for a decoder, and samples that no position is left for."""

from pathlib import Path

import pytest
import torch

from m3.model import M3Config, M3ForConditionalGeneration
from m3.training.command import main
from m3.training.loop.run_folder import RunFolder


@pytest.fixture(scope="module")
def base(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside a checkpoint to start from, `first`."""
    recipe = make_recipe(tmp_path_factory.mktemp("context"))
    assert main([str(recipe), "schedule.steps=1", f"run={recipe.parent}/first"]) == 0
    return recipe


def from_first(recipe: Path, name: str) -> list[str]:
    first = RunFolder(recipe.parent / "first").final
    return [
        str(recipe),
        "new_model=null",
        f"model={first}",
        f"run={recipe.parent}/{name}",
        "schedule.steps=1",
    ]


def test_a_decoder_gets_positions_and_another_base(base: Path) -> None:
    before = M3Config.from_pretrained(RunFolder(base.parent / "first").final).text_config
    positions = 2 * before.max_position_embeddings
    options = [
        f"context={{positions: {positions}, rope_theta: 5e6}}",
        f"data.pack_length={positions}",
    ]
    assert main([*from_first(base, "long"), *options]) == 0
    model = M3ForConditionalGeneration.from_pretrained(RunFolder(base.parent / "long").final)
    text = model.config.text_config
    assert (text.max_position_embeddings, text.rope_parameters["rope_theta"]) == (positions, 5e6)
    assert before.rope_parameters["rope_theta"] != 5e6
    head = text.hidden_size // text.num_attention_heads if text.head_dim is None else text.head_dim
    expected = 5e6 ** -(torch.arange(0, head, 2) / head)
    torch.testing.assert_close(model.model.language_model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_samples_beyond_the_positions_are_refused(base: Path, more: list[str]) -> None:
    positions = M3Config.from_pretrained(
        RunFolder(base.parent / "first").final
    ).text_config.max_position_embeddings
    message = rf"samples of {positions + 1} tokens, and the decoder has {positions} positions; .* context.positions to"
    with pytest.raises(ValueError, match=message):
        main([*from_first(base, "refused"), f"data.pack_length={positions + 1}", *more])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["context={positions: 8}"],
            r"context.positions is 8, and the decoder has \d+ already; "
            r"give more",
        ),
        (["context={positions: 0}"], "positions and rope_theta must be above 0, got 0, None"),
        (["context={positions: 9999, rope_theta: -1}"], "must be above 0, got 9999, -1"),
        (
            ["context={positions: 9999}", "adapter={rank: 2}"],
            "extend a model before it gets an adapter",
        ),
    ],
)
def test_what_cannot_be_is_refused(base: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*from_first(base, "wrong"), *options])


def test_a_new_model_says_its_positions_itself(base: Path) -> None:
    with pytest.raises(
        ValueError, match="for a new_model say max_position_embeddings in its text_config"
    ):
        main([str(base), f"run={base.parent}/new", "context={positions: 9999}"])
