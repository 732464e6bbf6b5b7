"""What the screen shows of a training run: one line per logged step.

    step 20 of 3600  loss 0.331  1@24 0.701  9@24 0.363  144 0.094  7,111 tokens/s  1 h 2 min left

in:  the metrics of a step, as transformers' Trainer logs them; losses of the budgets ascend;
out: lines on the screen of the first process. `metrics.jsonl` in the run folder has all metrics.
"""

import time
from collections.abc import Mapping

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from m3.nesting import read_budget
from m3.text_table import duration

SCALE_LOSS = "loss_scale_"
LEFT_TO_METRICS = ("loss", "grad_norm", "learning_rate", "epoch", "row_fill", "tokens_per_second")
"""Metrics with a place of their own in the line, or of interest in the file alone."""


class ScreenLines(TrainerCallback):
    """In place of transformers' progress bar, which prints a dictionary of texts."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        self._start_time, self._start_step = time.monotonic(), state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        logs = kwargs["logs"]
        if not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._start_time
        if "loss" in logs:
            steps_left = state.max_steps - state.global_step
            pace = seconds / max(1, state.global_step - self._start_step)
            time_left = f"{duration(steps_left * pace)} left" if steps_left else "the last step"
            line = step_line(state.global_step, state.max_steps, logs, time_left)
        elif "train_loss" in logs:
            steps = state.global_step - self._start_step
            line = f"{steps} steps in {duration(seconds)}"
        else:
            metric_texts = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
            line = f"step {state.global_step}  {metric_texts}"
        print(line, flush=True)  # noqa: T201 (the lines are the output)


def step_line(step: int, steps: int, logs: Mapping[str, float], time_left: str) -> str:
    """The line of a step; `time_left`, in words."""
    budgets = sorted(
        (read_budget(name.removeprefix(SCALE_LOSS)), value)
        for name, value in logs.items()
        if name.startswith(SCALE_LOSS)
    )
    other_metrics = {
        name: value
        for name, value in logs.items()
        if name not in LEFT_TO_METRICS and not name.startswith(SCALE_LOSS)
    }
    line_parts = [
        f"step {step} of {steps}",
        f"loss {logs['loss']:.3f}",
        *(f"{budget} {value:.3f}" for budget, value in budgets),
        *(f"{name} {value:.4g}" for name, value in other_metrics.items()),
    ]
    if "tokens_per_second" in logs:
        line_parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return "  ".join([*line_parts, time_left])
