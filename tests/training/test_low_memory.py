"""`memory: low`: the same gradients as the joint step, with the activations of one row at a
time.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import weights

from m3.config import load
from m3.data.collate import Collator
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.packed_sequences import real_tokens
from m3.processing import M3Processor
from m3.training.command import find_recipe, main
from m3.training.loop.row_by_row import row_by_row
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.recipe import Recipe

Make = Callable[..., M3ForConditionalGeneration]


class Kept:
    """A saved activation; counts the bytes alive, and their peak.

    What several graphs save counts for each.
    """

    alive = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.size = tensor, tensor.nbytes
        Kept.alive += self.size
        Kept.peak = max(Kept.peak, Kept.alive)

    def __del__(self) -> None:
        Kept.alive -= self.size


def peak_saved(step: Callable[[], object]) -> int:
    """Bytes of activations that autograd keeps at most."""
    Kept.alive = Kept.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return Kept.peak


@pytest.mark.parametrize("decoder", ["aria_text", "llama"])
@pytest.mark.parametrize("pack_length", [400, None])
def test_gradients_equal_the_joint_step_with_less_kept(
    decoder: str,
    pack_length: int | None,
    make_tuned: Make,
    processor: M3Processor,
    samples: list[Sample],
    text_sample: Sample,
) -> None:
    """Measured: gradients 2e-7 to 6e-7 apart.

    Bytes kept for the backward: at most those of the largest scale alone.
    """
    model = make_tuned(decoder).train()
    batch = Collator(processor, scales="all", pack_length=pack_length)([*samples, text_sample])
    real = real_tokens(
        batch["input_ids"], batch.get("attention_mask"), batch["sequence_lengths"]
    ).sum()
    options = {
        "num_items_in_batch": batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum()
    }
    if model.model.routers:
        options |= {"router_tokens": real.float(), "router_load": torch.rand(2, 4).softmax(-1)}

    def joint() -> None:
        model.zero_grad()
        model(**batch, **options).loss.backward()

    def read(row: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = model(**row, **options).loss
        loss.backward()
        return loss.detach()

    def low() -> None:
        model.zero_grad()
        row_by_row(model, batch, read)

    def largest() -> None:
        model.zero_grad()
        model(
            **Collator(processor, scales=(144,), pack_length=pack_length)([*samples, text_sample])
        ).loss.backward()

    peaks, gradients = {}, {}
    for step in (joint, low, largest):
        peaks[step.__name__] = peak_saved(step)
        gradients[step.__name__] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )
    difference = (gradients["low"] - gradients["joint"]).norm() / gradients["joint"].norm()
    assert difference < 1e-5
    assert peaks["low"] <= 1.25 * peaks["largest"]
    assert peaks["low"] < 0.7 * peaks["joint"]


def test_a_run_row_by_row_is_the_same_run(recipe: Path) -> None:
    losses = {}
    for memory in ("packed", "low"):
        run = recipe.parent / memory
        main(
            [
                str(recipe),
                f"run={run}",
                f"memory={memory}",
                "schedule.steps=4",
                "data.pack_length=64",
            ]
        )
        losses[memory] = [row["loss"] for row in RunFolder(run).read_metrics()]
    assert losses["low"] == pytest.approx(losses["packed"], rel=1e-5)
    first, second = (weights(recipe.parent / memory) for memory in ("packed", "low"))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


def test_held_out_samples_give_a_curve_of_every_scale(recipe: Path) -> None:
    held = (
        f"held_out={{every: 2, samples: 4, source: {{path: {recipe.parent}/data.json, "
        f"image_folder: {recipe.parent}}}}}"
    )
    main([str(recipe), "schedule.steps=4", held])
    rows = [
        row
        for row in RunFolder(recipe.parent / "run").read_metrics()
        if "eval_loss_scale_36" in row
    ]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0].keys() >= {"eval_loss_scale_1", "eval_loss_scale_4", "eval_loss_scale_36"}
    assert rows[0]["eval_loss_scale_1"] != rows[1]["eval_loss_scale_1"]


def test_scales_weigh_what_the_recipe_says(processor: M3Processor, samples: list[Sample]) -> None:
    plain = Collator(processor, scales=(1, 4, 9))(samples[:1])
    weighted = Collator(processor, scales=(1, 4, 9), scale_weights={9: 2.0})(samples[:1])
    of_row = {
        name: batch["loss_weights"].amax(1).tolist()
        for name, batch in (("plain", plain), ("weighted", weighted))
    }
    assert of_row["plain"] == pytest.approx([1 / 3] * 3)
    assert of_row["weighted"] == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["memory=low", "hardware.deepspeed=zero3.json"],
            "memory: low goes backward several times a step",
        ),
        (["scale_weights={16: 1}"], "must be positive and of the trained scales"),
        (["scale_weights={9: 0}"], "leave a scale out of those rather than giving it 0"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(find_recipe("tiny_all_scales"), Recipe, overrides)
