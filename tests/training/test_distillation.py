"""Self-distillation over scales: equal to a computation by hand, one-way, and nothing where
there is nothing to learn.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import weights

from m3.config import load
from m3.data.collate import Collator
from m3.data.mixture import Positioned
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.distillation import divergences, teachers
from m3.processing import M3Processor
from m3.training.command import find_recipe, main
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.recipe import Recipe

SCALES = (1, 4, 9, 36, 144)
Make = Callable[..., M3ForConditionalGeneration]


def label_logits(model: M3ForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, skip_logits=False).logits[:, :-1][batch["labels"][:, 1:] != -100]


def by_hand(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    samples: list[Sample],
    temperature: float,
    scale_weights: dict[int, float],
) -> tuple[float, float, int]:
    """One forward pass per sample and scale; (weighted and divided, plain sum, number of
    tokens).
    """
    total = weighted = plain = number = 0.0
    whole = sum(scale_weights.get(scale, 1.0) for scale in SCALES)
    for sample in samples:
        copies = {
            s: label_logits(model, Collator(processor, scales=(s,))([sample])) / temperature
            for s in SCALES
        }
        total += len(copies[144])
        if not sample.images:
            continue
        teacher = copies[144].softmax(-1)
        for scale in SCALES[:-1]:
            student = copies[scale].log_softmax(-1)
            kl = float((teacher * (teacher.log() - student)).sum()) * temperature**2
            weighted += kl * scale_weights.get(scale, 1.0) / whole
            plain, number = plain + kl, number + len(student)
    return weighted / total, plain, int(number)


@pytest.mark.parametrize(
    ("decoder", "pack_length", "temperature", "scale_weights"),
    [
        ("llama", 500, 1.0, {}),
        ("aria_text", 500, 2.0, {}),
        ("llama", None, 2.0, {1: 3.0}),
        ("llama", 4000, 0.5, {4: 2.0}),
    ],
)
def test_packed_distillation_equals_one_forward_per_scale(
    decoder: str,
    pack_length: int | None,
    temperature: float,
    scale_weights: dict[int, float],
    make_tuned: Make,
    processor: M3Processor,
    samples: list[Sample],
    text_sample: Sample,
) -> None:
    """Measured: at most 2e-7 apart, of 0.04 to 0.22."""
    model = make_tuned(decoder)
    model.lm_head.weight.data *= 8  # so that the scales differ
    mixed = [*samples[:2], text_sample, *samples[2:]]
    collate = Collator(
        processor,
        scales="all",
        pack_length=pack_length,
        scale_weights=scale_weights,
        teacher_index=True,
    )
    with torch.no_grad():
        output = model(**collate(mixed), distil_weight=0.7, distil_temperature=temperature)
        expected, plain, number = by_hand(model, processor, mixed, temperature, scale_weights)
        collate.teacher_index = False
        without = model(**collate(mixed))
    assert expected > 1e-2, "there is something to compare"
    assert float(output.distil_loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert float(output.distil_loss_sum) == pytest.approx(plain, rel=1e-5)
    assert int(output.distil_loss_count) == number
    assert torch.equal(output.language_loss, without.language_loss)
    torch.testing.assert_close(
        output.loss, without.loss + 0.7 * output.distil_loss, rtol=1e-6, atol=1e-6
    )


def test_micro_batches_divide_by_the_whole_step(
    make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    model = make_tuned("llama")
    collate = Collator(processor, pack_length=500, teacher_index=True)
    parts = [collate(samples[:1]), collate(samples[1:])]
    total = sum(float(part["loss_weights"][part["labels"] != -100].sum()) for part in parts)
    with torch.no_grad():
        whole = model(**collate(samples), distil_weight=1.0).distil_loss
        split = [
            model(**part, distil_weight=1.0, num_items_in_batch=total).distil_loss for part in parts
        ]
    assert float(sum(split)) == pytest.approx(float(whole), rel=1e-5)


def test_gradient_flows_into_the_coarser_scales_alone(
    make_tuned: Make, processor: M3Processor, samples: list[Sample], text_sample: Sample
) -> None:
    model = make_tuned("llama").train()
    seen: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    batch = Collator(processor, pack_length=500, teacher_index=True)([*samples, text_sample])
    output = model(**batch, distil_weight=1.0)
    hook.remove()
    (gradient,) = torch.autograd.grad(output.distil_loss, seen)
    is_target = batch["labels"][:, 1:] != -100
    assert len(seen[0]) == int(is_target.sum()), "logits of label tokens alone are made"
    is_student = (batch["teacher_index"][:, 1:] >= 0)[is_target]
    moved = gradient.abs().amax(1) > 0
    assert torch.equal(moved, is_student)
    assert 0 < int(is_student.sum()) < len(is_student)


@pytest.mark.parametrize("pack_length", [None, 420, 4000])
def test_a_teacher_is_the_same_label_at_the_largest_scale(
    pack_length: int | None, processor: M3Processor, samples: list[Sample], text_sample: Sample
) -> None:
    batch = Collator(processor, pack_length=pack_length, teacher_index=True)(
        [text_sample, *samples]
    )
    index, labels = batch["teacher_index"], batch["labels"]
    assert index.shape == labels.shape
    taught = index >= 0
    assert torch.equal(labels.flatten()[index[taught]], labels[taught])
    assert set(index.flatten()[index[taught]].tolist()) == {-1}, "a teacher has no teacher"
    assert (index[labels == -100] == -1).all()
    assert int(taught.sum()) == 4 * len(index[taught].unique()), "four coarser scales a teacher"


@pytest.mark.parametrize("mode", ["sandwich", "random"])
def test_drawn_scales_learn_from_the_largest_of_the_step(
    mode: str, make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    model = make_tuned("llama")
    collate = Collator(processor, scales=mode, pack_length=900, step_samples=2, teacher_index=True)
    for step in range(2):
        batch = collate([Positioned(2 * step + n, sample) for n, sample in enumerate(samples[:2])])
        with torch.no_grad():
            output = model(**batch, distil_weight=1.0)
        coarse = len(output.scales) - 1
        assert coarse == {"sandwich": 3, "random": 0}[mode]
        assert int(output.distil_loss_count) == coarse * int(output.scale_loss_counts[-1])
        assert (float(output.distil_loss) > 0) == (coarse > 0)
        assert torch.isfinite(output.loss)


def test_text_alone_adds_nothing(
    make_tuned: Make, processor: M3Processor, text_sample: Sample
) -> None:
    model = make_tuned("llama").train()
    output = model(
        **Collator(processor, pack_length=200, teacher_index=True)([text_sample]), distil_weight=1.0
    )
    assert (float(output.distil_loss), int(output.distil_loss_count)) == (0.0, 0)
    assert torch.equal(output.loss, output.language_loss)
    output.loss.backward()


def test_runs_log_it_and_weight_zero_trains_as_without(recipe: Path) -> None:
    rows = {}
    held = (
        f"held_out={{every: 3, samples: 2, source: {{path: {recipe.parent}/data.json, "
        f"image_folder: {recipe.parent}}}}}"
    )
    for name, distil in (
        ("off", "null"),
        ("zero", "{weight: 0}"),
        ("on", "{weight: 1.0, temperature: 2.0}"),
    ):
        main(
            [
                str(recipe),
                f"run={recipe.parent / name}",
                f"distil={distil}",
                "schedule.steps=3",
                held,
            ]
        )
        rows[name] = [
            row for row in RunFolder(recipe.parent / name).read_metrics() if "loss" in row
        ]
    off, zero, on = (weights(recipe.parent / name) for name in ("off", "zero", "on"))
    assert all(torch.equal(off[name], zero[name]) for name in off)
    assert any(not torch.equal(off[name], on[name]) for name in off)
    assert [row["loss"] for row in rows["off"]] == [row["loss"] for row in rows["zero"]]
    assert not any("distil_loss" in row for row in rows["off"])
    assert len(rows["on"]) == 3
    assert all(row["distil_loss"] > 0 for name in ("zero", "on") for row in rows[name])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distil={}", "memory=low"],
            "memory: low reads one row at a time, and distil compares tokens of several rows",
        ),
        (["distil={weight: -1}"], "weight -1.0 must be at least 0"),
        (["distil={temperature: 0}"], "temperature 0.0 above 0"),
        (["distil={wieght: 1}"], "unknown key 'wieght'. Did you mean 'weight'"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(find_recipe("tiny_all_scales"), Recipe, overrides)


def test_half_of_what_it_takes_is_refused(
    make_tuned: Make, processor: M3Processor, samples: list[Sample]
) -> None:
    model = make_tuned("llama")
    with pytest.raises(ValueError, match="got distil_weight without teacher_index"):
        model(**Collator(processor)(samples[:1]), distil_weight=1.0)
    with pytest.raises(ValueError, match="got teacher_index without distil_weight"):
        model(**Collator(processor, teacher_index=True)(samples[:1]))


def test_a_teacher_outside_the_batch_is_refused() -> None:
    is_target, index = torch.tensor([[True, False, True]]), torch.tensor([[-1, 3, -1, -1]])
    is_student, teacher = teachers(is_target, index)
    assert (is_student.tolist(), teacher.tolist()) == ([True, False], [1])
    assert float(divergences(torch.zeros(2, 5), is_student, teacher, 1.0)) == 0.0
    with pytest.raises(
        ValueError, match="points 1 label tokens at positions that are no label tokens"
    ):
        teachers(is_target, torch.tensor([[-1, 2, -1, -1]]))
