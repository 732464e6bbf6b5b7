"""A run stops where it would train nothing, or nonsense: before anything of that is saved."""

import json
from pathlib import Path

import pytest
import torch

from m3.training.command import main
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.trainer import RunTrainer


def test_a_loss_that_is_no_number_stops_the_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer alone would log the mean of the losses before instead, and train on."""
    own = RunTrainer.compute_loss

    def spoilt(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = own(self, model, inputs, return_outputs, num_items_in_batch)
        return loss * float("nan") if self.state.global_step >= 3 else loss

    monkeypatch.setattr(RunTrainer, "compute_loss", spoilt)
    with pytest.raises(
        ValueError,
        match=r"step 4: the loss is nan.*newest checkpoint is "
        r".*checkpoint-2.*parts.*max_grad",
    ):
        main([str(recipe), "schedule.steps=6", "schedule.save_every=2"])
    run = RunFolder(recipe.parent / "run")
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert run.newest_checkpoint() == str(run.checkpoints / "checkpoint-2")
    assert not run.is_finished


def test_a_gradient_that_is_no_number_stops_the_run_too(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have spoilt the weights of the last step, whose loss was still a number."""
    own = RunTrainer.training_step

    def spoilt(self, model, inputs, num_items_in_batch=None):
        loss = own(self, model, inputs, num_items_in_batch)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(RunTrainer, "training_step", spoilt)
    with pytest.raises(
        ValueError,
        match=r"step 1: the norm of the gradient is (inf|nan); .*no "
        r"checkpoint",
    ):
        main([str(recipe), "schedule.steps=1"])
    assert not RunFolder(recipe.parent / "run").is_finished


def test_a_run_of_which_every_sample_is_left_out_stops(recipe: Path) -> None:
    """A folder of images that is not mounted, say, with `broken: skip`."""
    data = recipe.parent / "data.json"
    data.write_text(
        json.dumps([record for record in json.loads(data.read_text()) if "image" in record])
    )
    for path in recipe.parent.glob("[0-9].png"):
        path.unlink()
    with pytest.raises(
        ValueError,
        match=r"step 1: all 4 samples since .* were left out \(4 broken, 0 too "
        r"long\).*m3 data check",
    ):
        main([str(recipe), "data.broken=skip", "schedule.steps=2"])
    assert not RunFolder(recipe.parent / "run").is_finished
