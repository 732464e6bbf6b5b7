"""`report_to`: the curves of every scale in TensorBoard's own file; a package that is missing is
named.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from m3.training.command import main
from m3.training.loop.run_folder import RunFolder


def test_tensorboard_has_the_loss_of_every_scale(recipe: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main([str(recipe), "schedule.steps=3", "report_to=[tensorboard]"])
    run = RunFolder(recipe.parent / "run")
    (file,) = run.checkpoints.glob("runs/*/events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert len(run.read_metrics()) == 3
    for name in ("loss", "loss_scale_1", "loss_scale_4", "loss_scale_36"):
        seen = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        rows = [(row["step"], row[name]) for row in run.read_metrics() if name in row]
        assert [step for step, _ in seen] == [step for step, _ in rows]
        assert [value for _, value in seen] == pytest.approx([value for _, value in rows], rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named(recipe: Path) -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"report_to.*: this needs the package wandb, which .*: pip "
        r"install -e '.\[wandb\]'",
    ):
        main([str(recipe), "report_to=[wandb]"])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for a CPU")
def test_fsdp_on_a_cpu_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ValueError,
        match=r"accelerate shards by FSDP on accelerators alone, .* "
        r"LAUNCHER=torchrun",
    ):
        main([str(recipe)])


def test_a_model_that_is_not_there_is_named(recipe: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"model: checkpoints/llava-v1.5-7b is no checkpoint "
        r"folder .*m3 assemble",
    ):
        main(["llava_1_5_7b_m3", f"run={recipe.parent}/none"])
