"""What a run measures between its steps: who asks for it, when, and that training goes on as if
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
from m3.training.recipe import Recipe
from m3.training.sections import TASKS_FOLDER
from m3.training.sections import Evaluation as Settings

Benchmarks = Callable[[M3ForConditionalGeneration, M3Processor, int], dict[str, float]]
"""Scores of the live model at a step, as names and numbers of the metrics.

Every process comes here.
"""
OpenBenchmarks = Callable[[Recipe, Path], Benchmarks]
"""Makes ready what a recipe's `evaluation` names, in a folder of the run; a `ValueError` says
what is wrong with it.
"""


@dataclass(frozen=True)
class Evaluation:
    """`measure(step)` is asked for at every `every`-th step."""

    every: int
    measure: Callable[[int], dict[str, float]]


def check_folders(wanted: Settings) -> None:
    """A `ValueError` for a folder that a recipe's `evaluation` names and that is not there: its
    tasks would not be found.
    """
    for key, path in (("include_path", wanted.include_path), ("data_root", wanted.data_root)):
        if path not in (None, TASKS_FOLDER) and not Path(path).is_dir():
            raise ValueError(
                f"evaluation.{key}: there is no folder {path} (looked from {Path.cwd()}); correct "
                f"the path, or leave {key} out"
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
            state.global_step % one.every == 0 for one in self._evaluations
        )


@contextmanager
def kept_random_state() -> Iterator[None]:
    """All random states are as before behind the block: Python's, numpy's, torch's on the CPU
    and this process's device.
    """
    own, numpys = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = [] if accelerator is None else [torch.accelerator.current_device_index()]
    with torch.random.fork_rng(
        devices, device_type="cuda" if accelerator is None else accelerator.type
    ):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)
