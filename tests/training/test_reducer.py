"""A token reducer that learns: exchanged in a run, trained, adapted by LoRA, swept and served."""

from pathlib import Path

import pytest
import torch
from serving_files import png
from training_runs import weights

from m3.evaluation.sweep import command as sweep
from m3.inference import Generation
from m3.inference.loading import load
from m3.inference.question import ask
from m3.nesting import pool_grid
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Request, Turn, Visual
from m3.serving.settings import Settings
from m3.training.command import main

QUERIES, KEY = "model.reducer.queries", "model.reducer.key.weight"
REDUCER = "reducer={kind: attention_pool, heads: 4, key_width: 8}"
SHORT = ["schedule.steps=4", "schedule.save_every=4", "schedule.accumulation=1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_recipe) -> Path:
    """A recipe whose run has left a checkpoint with grid pooling."""
    recipe = make_recipe(tmp_path_factory.mktemp("base"))
    assert main([str(recipe), *SHORT]) == 0
    return recipe


def go_on(recipe: Path, source: str, name: str, *options: str) -> Path:
    """Another run from the checkpoint of run `source`."""
    folder = recipe.parent
    given = [f"model={folder}/{source}/checkpoints/final", "new_model=null", f"run={folder}/{name}"]
    assert main([str(recipe), *given, *SHORT, *options]) == 0
    return folder / name


@pytest.fixture(scope="module")
def learned(base: Path) -> Path:
    """A run that has exchanged the reducer and trained it."""
    return go_on(base, "run", "learned", REDUCER, "parts.reducer=1e-2")


def test_an_exchanged_reducer_trains(base: Path, learned: Path) -> None:
    before, after = weights(base.parent / "run"), weights(learned)
    assert set(after) - set(before) == {QUERIES, KEY}
    assert after[QUERIES].abs().max() > 1e-3  # it began at zero
    model, processor = load(learned / "checkpoints" / "final", device="cpu")
    assert model.config.nesting.kind == processor.nesting["kind"] == "attention_pool"
    assert model.config.nesting.options.key_width == 8
    tokens = torch.randn(1, 36, 16)
    assert not torch.allclose(
        model.model.reducer.reduce(tokens, 4, (6, 6)), pool_grid(tokens, 4, (6, 6)), atol=1e-4
    )


def test_it_stays_where_it_is_frozen_and_follows_the_connector(base: Path, learned: Path) -> None:
    frozen = go_on(base, "learned", "frozen", "parts.reducer=frozen")
    assert torch.equal(weights(frozen)[QUERIES], weights(learned)[QUERIES])
    follows = go_on(base, "learned", "follows")
    assert not torch.equal(weights(follows)[QUERIES], weights(learned)[QUERIES])


def test_lora_trains_it_whole_and_merges_it(base: Path, learned: Path) -> None:
    adapter = "adapter={rank: 2, alpha: 4, targets: [attention]}"
    adapted = go_on(base, "learned", "adapted", adapter, "parts.reducer=1e-2")
    assert not torch.equal(weights(adapted)[QUERIES], weights(learned)[QUERIES])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["parts.reducer=1e-3"], "parts.reducer: the reducer grid_pool has no parameters"),
        (["reducer={kind: attention}"], "unknown nesting kind 'attention'"),
        (["reducer={kind: attention_pool, head: 4}"], "has no setting head; it has heads"),
        (["reducer={kind: attention_pool, trained_scales: [1]}"], "takes no trained_scales"),
        ([REDUCER, "adapter={rank: 2, alpha: 4, targets: [attention]}"], "a run of its own"),
    ],
)
def test_what_cannot_be_is_refused(base: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go_on(base, "run", "refused", *options)


def test_a_sweep_and_the_server_read_by_it(learned: Path, tmp_path: Path) -> None:
    folder = learned / "checkpoints" / "final"
    options = ["--tasks", "m3_tiny_scene", "--scales", "1,36", "--limit", "2", "--no-latency"]
    run = tmp_path / "sweep"
    given = [str(folder), *options, "--methods", "nesting,uniform", "--device", "cpu"]
    assert sweep.main([*given, "--out", str(run)]) == 0
    lines = (run / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert all(",ok," in line for line in lines[1:])
    model, processor = load(folder, device="cpu")
    engine = Engine(model, processor, Settings())
    try:
        for scale in (1, 4, 36):
            turn = Turn("user", (Visual("image", png("red")), "What is it?"))
            served = engine.answer(Request((turn,), scale, Generation(8)))
            generation = Generation(8)
            asked = ask(
                (model, processor), "What is it?", images=[png("red")],
                matryoshka_vis_token_scale=scale, generation=generation,
            )  # fmt: skip
            assert (served.text, served.usage.visual_tokens) == (asked, scale)
    finally:
        engine.close()
