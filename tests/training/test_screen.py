"""The lines that a training run shows."""

import re
from pathlib import Path

import pytest

from m3.train import main
from m3.training.loop.screen import step_line


def test_a_line_has_the_losses_of_the_budgets_in_order() -> None:
    logs = {
        "loss": 0.33101,
        "grad_norm": 1.6,
        "learning_rate": 1e-5,
        "loss_scale_144": 0.0939,
        "loss_scale_9": 0.1352,
        "loss_scale_1@24": 0.7012,
        "distil_loss": 0.0123456,
        "tokens_per_second": 7111.4,
        "row_fill": 0.94,
        "epoch": 0.005,
    }
    assert step_line(20, 3600, logs, "1 h 2 min left") == (
        "step 20 of 3600  loss 0.331  1@24 0.701  9 0.135  144 0.094  distil_loss 0.01235  "
        "7,111 tokens/s  1 h 2 min left"
    )
    assert (
        step_line(1, 1, {"loss": 2.0}, "the last step") == "step 1 of 1  loss 2.000  the last step"
    )


def test_the_screen_has_a_line_per_logged_step(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recipe), "schedule.steps=3", "schedule.log_every=1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.partition("  loss")[0] for line in lines] == [f"step {n} of 3" for n in (1, 2, 3)]
    assert all(re.search(r"  36 \d\.\d{3}  .*tokens/s", line) for line in lines)
    assert lines[0].endswith(" left") and lines[-1].endswith("the last step")
