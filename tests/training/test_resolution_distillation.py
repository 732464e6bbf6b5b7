"""Distillation of a tower over resolutions: what is compared, what trains, and what a run leaves."""

import shutil
from pathlib import Path

import pytest
import torch
from training_runs import weights

from m3.data.mixture import Broken, Positioned
from m3.data.sample import Sample
from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.tiles import tile_options
from m3.train import main
from m3.training.loop.run_folder import RunFolder
from m3.training.resolutions.distiller import (
    PictureCollator,
    ResolutionDistiller,
    check_resolutions,
)

RECIPE = """
run: {folder}/distilled
model: {folder}/run/checkpoints/final
matryoshka_vis_token_scale: [1@8, 4@16, 36]
resolution_distillation: {{learning_rate: 1e-3, weights: {{8: 0.5, full: 0.25}}}}
data: {{sources: [{{path: {folder}/data.json, image_folder: {folder}}}]}}
schedule: {{batch_size: 4, steps: 8, log_every: 1, save_every: 4}}
optimiser: {{warmup: 0, schedule: constant}}
hardware: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def folder(make_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished model, and a recipe that distils it."""
    recipe = make_recipe(tmp_path_factory.mktemp("distilled"))
    assert main([str(recipe), "schedule.steps=2"]) == 0
    (recipe.parent / "distil.yaml").write_text(RECIPE.format(folder=recipe.parent))
    return recipe.parent


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[M3ForConditionalGeneration, M3Processor]:
    return load(folder / "run" / "checkpoints" / "final", device="cpu")


def test_errors_are_of_tokens_against_pooled_ones(
    base: tuple[M3ForConditionalGeneration, M3Processor], samples: list[Sample]
) -> None:
    """Each picture alone at each resolution, by hand; the error of the largest is none at first."""
    model, processor = base
    distiller = ResolutionDistiller(model.model, {8: 2.0, None: 1.0}).eval()
    batch = PictureCollator(processor, [8, None])([Positioned(0, samples[2])])
    with torch.no_grad():
        output = distiller(**batch)
        own, pooled = [], []
        for picture in samples[2].images:
            small, full = (
                model.get_image_features(
                    processor.prepare_images([picture], options=tile_options([side])).pixel_values
                ).pooler_output
                for side in (8, None)
            )
            assert small is not None and full is not None
            own.append(small[0])
            grid = full[0].view(2, 3, 2, 3, -1)
            pooled.append(grid.mean((1, 3)).flatten(0, 1))
    target = torch.stack(pooled)
    expected = (torch.stack(own) - target).square().mean() / target.var()
    assert output.errors is not None and output.loss is not None
    torch.testing.assert_close(output.errors, torch.stack([expected, torch.zeros(())]))
    torch.testing.assert_close(output.loss, 2 * expected / 3)


def test_tower_and_connector_train_and_nothing_else(
    base: tuple[M3ForConditionalGeneration, M3Processor], samples: list[Sample]
) -> None:
    model, processor = base
    distiller = ResolutionDistiller(model.model, {8: 1.0, None: 1.0}).train()
    assert not distiller.teacher_tower.training
    output = distiller(**PictureCollator(processor, [8, None])([Positioned(0, samples[0])]))
    assert output.loss is not None
    output.loss.backward()
    trained = {name.split(".")[0] for name, p in distiller.named_parameters() if p.grad is not None}
    assert trained == {"tower", "connector"}
    assert all(p.grad is None for p in model.model.language_model.parameters())
    model.zero_grad()


def test_a_run_leaves_the_model_with_another_tower_and_its_ladder(folder: Path) -> None:
    assert main([str(folder / "distil.yaml")]) == 0
    rows = RunFolder(folder / "distilled").read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[0]["error_full"] < 1e-10
    assert rows[-1]["error_8"] < 0.8 * rows[0]["error_8"]
    before, after = weights(folder / "run"), weights(folder / "distilled")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(
        name.startswith(("model.vision_tower", "model.connector")) for name in changed
    )
    model, processor = load(folder / "distilled" / "checkpoints" / "final", device="cpu")
    assert list(model.config.nesting.trained_scales) == ["1@8", "4@16", 36]
    assert processor.trained_scales == ["1@8", "4@16", 36]


def test_a_run_that_was_killed_goes_on_to_the_same_weights(folder: Path) -> None:
    """The frozen copy is in the checkpoints: what is gone on from is not what is compared with."""
    again = [str(folder / "distil.yaml"), f"run={folder}/again"]
    assert main(again) == 0
    whole = weights(folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "final")
    shutil.rmtree(folder / "again" / "checkpoints" / "checkpoint-8")
    assert main(again) == 0
    resumed = weights(folder / "again")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["matryoshka_vis_token_scale=[1,36]"], "budgets at the largest resolution and at lower"),
        (["matryoshka_vis_token_scale=[1@8,4@16]"], "budgets at the largest resolution and at"),
        (
            ["resolution_distillation.weights.12=1"],
            r"weights names \[12\], but .* \[8, 16, 'full'\]",
        ),
        (["resolution_distillation.weights.full=0"], "weights.full must be a number above 0"),
        (["resolution_distillation.learning_rate=0"], "learning_rate must be a number above 0"),
        (["hardware.deepspeed=scripts/deepspeed/zero3.json"], "launch it with torchrun"),
        (
            ["matryoshka_vis_token_scale=[1@6,36]", "resolution_distillation={}"],
            "a multiple of 4 pixels, the side of a token",
        ),
    ],
)
def test_recipes_that_make_no_sense_are_refused(
    folder: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(folder / "distil.yaml"), f"run={folder}/refused", *options])


def test_models_without_grids_and_batches_without_pictures_are_refused(
    base: tuple[M3ForConditionalGeneration, M3Processor], text_sample: Sample, make_tuned
) -> None:
    collator = PictureCollator(base[1], [8, None])
    with pytest.raises(ValueError, match="none of 2 samples shows a picture"):
        collator([Positioned(0, text_sample), Positioned(1, Broken("cut"))])
    queries = make_tuned(
        connector={"kind": "resampler", "num_queries": 4}, nesting={"kind": "query_prefix"}
    )
    with pytest.raises(ValueError, match="learned queries"):
        check_resolutions(queries.model, [8, None])
