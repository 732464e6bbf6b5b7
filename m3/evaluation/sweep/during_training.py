"""A sweep of a model that is being trained: it is neither loaded nor saved, and trains on
afterwards as if nothing had been.

In: the options of the sweep, once; then the live model, its processor and the step. Out: scores
by task and scale, and `step-N`, a folder as `m3 sweep` leaves one, for `m3 report`. Of several
processes each answers its share, the first one scores. Where each process holds a part of every
weight (ZeRO-3), all answer everything, in step.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace

import torch

from m3.digest import digest
from m3.evaluation.answering.engine import Engine
from m3.evaluation.results.run_folder import CellRow
from m3.evaluation.sweep.options import SweepOptions
from m3.evaluation.sweep.selection import task_names
from m3.evaluation.sweep.sweep import find, prepare, sweep_engine
from m3.model import M3Config, M3ForConditionalGeneration
from m3.nesting import read_budget
from m3.processing.processor import M3Processor


class LiveSweep:
    """Sweeps into folders under `options.out`; the tasks are loaded once, here.

    `options`: its scales are given. `sharded`: the model's configuration, where ZeRO-3 cuts its
    weights up, which it does to every model made after this.

    Raises:
        ValueError: a task that there is not, that needs a judge, or that cannot be loaded.
    """

    def __init__(self, options: SweepOptions, sharded: M3Config | None = None) -> None:
        assert options.scales is not None  # those trained are the caller's to know
        self._options, self._outline = options, None
        self._scales = sorted(options.scales, key=read_budget)
        if sharded is not None:
            with torch.device("meta"):
                self._outline = M3ForConditionalGeneration(sharded)
        wanted_tasks, _ = task_names(options.suites, options.tasks, has_judge=False)
        self._found = find(options, wanted_tasks)
        for broken in self._found[2]:
            raise ValueError(
                f"evaluation: task {broken.name} cannot be loaded: {broken.error}"
            ) from broken.error

    def __call__(
        self, model: M3ForConditionalGeneration, processor: M3Processor, step: int
    ) -> dict[str, float]:
        """`eval_TASK_scale_S` -> score, and `eval_mean_scale_S` over several tasks; on the process
        that scores.

        A task that fails is left out of them; its cells say why, and are logged.
        """
        run, was_training = self._options.out / f"step-{step}", model.training
        options = replace(self._options, models=(str(run),), out=run)
        sweep = prepare(options, self._found, self._scales)
        if sweep.is_writer:
            # of a step that was interrupted, and is now made again
            shutil.rmtree(run / "store", ignore_errors=True)
        sweep.accelerator.wait_for_everyone()
        sweep.in_step = self._outline is not None
        if self._outline is not None:
            self._outline.to(model.dtype)  # pyright: ignore[reportArgumentType]  # transformers wraps `to` without its types
        engine = Engine(model, processor, digest([str(run.resolve()), step]), outline=self._outline)
        sweep_engine(sweep, f"step-{step}", str(run), engine)
        model.train(was_training)
        return scores(sweep.cells)


def scores(cells: Sequence[CellRow]) -> dict[str, float]:
    """The primary metric of every cell that was scored, as metrics of a training run; means of
    accuracies where none failed.
    """
    primary = {
        (cell.task, cell.scale): cell.value
        for cell in cells
        if cell.is_primary and cell.value is not None
    }
    scored = [cell for cell in cells if cell.is_primary]
    hundreds, point_tasks = (
        {cell.task for cell in scored if cell.unit == unit_name}
        for unit_name in ("percent", "points")
    )
    eval_scores = {
        f"eval_{task}_scale_{scale}": score_value for (task, scale), score_value in primary.items()
    }
    tasks = {
        cell.task
        for cell in cells
        if cell.higher_is_better is not False and cell.task not in point_tasks
    }  # an error, or points of some unit, have no place among accuracies
    for scale in sorted({cell.scale for cell in cells}, key=read_budget):
        scored_tasks = [task for task in sorted(tasks) if (task, scale) in primary]
        share_values = [
            primary[task, scale] / (100 if task in hundreds else 1) for task in scored_tasks
        ]
        if 1 < len(tasks) == len(share_values):
            eval_scores[f"eval_mean_scale_{scale}"] = sum(share_values) / len(share_values)
    return {score_name: round(score_value, 6) for score_name, score_value in eval_scores.items()}
