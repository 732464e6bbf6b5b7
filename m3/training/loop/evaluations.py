"""Evaluations between training steps: who asks for them, when, and that training goes on as if
nothing had been measured.

The benchmarks themselves are given from above (m3/train.py): training and evaluation do not know
each other.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.recipe.sections import TASKS_FOLDER
from m3.training.recipe.sections import Evaluation as Settings
from m3.training.setup.resolved import ResolvedRun

Benchmarks = Callable[[M3ForConditionalGeneration, M3Processor, int], dict[str, float]]
"""Scores of the live model at a step, as names and numbers of the metrics.

Every process comes here.
"""
OpenBenchmarks = Callable[[ResolvedRun, Path], Benchmarks]
"""Makes ready what a recipe's `evaluation` names, in a folder of the run; a `ValueError` says
what is wrong with it.
"""


@dataclass(frozen=True)
class Evaluation:
    """`measure(step)` is asked for at every `every`-th step."""

    every: int
    measure: Callable[[int], dict[str, float]]


def check_folders(evaluation_settings: Settings) -> None:
    """A `ValueError` for a folder that a recipe's `evaluation` names and that is not there: its
    tasks would not be found.
    """
    for setting_name, setting_folder in (
        ("include_path", evaluation_settings.include_path),
        ("data_root", evaluation_settings.data_root),
    ):
        if setting_folder not in (None, TASKS_FOLDER) and not Path(setting_folder).is_dir():
            raise ValueError(
                f"evaluation.{setting_name}: there is no folder {setting_folder} (looked from "
                f"{Path.cwd()}); correct the path, or leave {setting_name} out"
            )


class AskWhenDue(TrainerCallback):
    """Has Trainer evaluate at the steps at which any evaluation is due, after the step's log and
    before its checkpoint.
    """

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self._evaluations = evaluations

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        control.should_evaluate = any(
            state.global_step % due_evaluation.every == 0 for due_evaluation in self._evaluations
        )


@contextmanager
def kept_random_state() -> Iterator[None]:
    """All random states are as before behind the block: Python's, numpy's, torch's on the CPU
    and this process's device.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = [] if accelerator is None else [torch.accelerator.current_device_index()]
    with torch.random.fork_rng(
        devices, device_type="cuda" if accelerator is None else accelerator.type
    ):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
