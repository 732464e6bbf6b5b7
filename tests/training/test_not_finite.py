"""A loss or a gradient that is no number stops the run, before anything of it is saved."""

from pathlib import Path

import pytest
import torch

from m3.training.command import main
from m3.training.run_folder import RunFolder
from m3.training.trainer import RunTrainer


def test_a_loss_that_is_no_number_stops_the_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer alone would log the mean of the losses before instead, and train on."""
    own = RunTrainer.compute_loss

    def spoilt(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = own(self, model, inputs, return_outputs, num_items_in_batch)
        return loss * float("nan") if self.state.global_step >= 3 else loss

    monkeypatch.setattr(RunTrainer, "compute_loss", spoilt)
    with pytest.raises(
        ValueError, match=r"step 4: the loss is nan.*newest checkpoint is .*checkpoint-2.*parts.*max_grad"
    ):
        main([str(recipe), "schedule.steps=6", "schedule.save_every=2"])
    run = RunFolder(recipe.parent / "run")
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert run.newest_checkpoint() == str(run.checkpoints / "checkpoint-2")
    assert not run.is_finished


def test_a_gradient_that_is_no_number_stops_the_run_too(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have spoilt the weights of the last step, whose loss was still a number."""
    own = RunTrainer.training_step

    def spoilt(self, model, inputs, num_items_in_batch=None):
        loss = own(self, model, inputs, num_items_in_batch)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(RunTrainer, "training_step", spoilt)
    with pytest.raises(ValueError, match=r"step 1: the norm of the gradient is (inf|nan); .*no checkpoint"):
        main([str(recipe), "schedule.steps=1"])
    assert not RunFolder(recipe.parent / "run").is_finished
