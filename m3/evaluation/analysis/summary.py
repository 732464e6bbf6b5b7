"""What a sweep found, from its folder alone: beside the scores (scores.py) what single documents
tell.

In: a run folder (run_folder.py). Out: `Summary`: samples, the oracle, retention, calibration, the
experts chosen, replies. The tables, the charts and the page are made of it.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from m3.evaluation.analysis.calibration import Calibration, calibration
from m3.evaluation.analysis.metric_kind import towards_better
from m3.evaluation.analysis.oracle import Oracle, oracle
from m3.evaluation.analysis.scores import Scores
from m3.evaluation.answering.expert_routing import Routing
from m3.evaluation.results.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    read_keys,
    read_list,
    read_object,
    read_rows,
)
from m3.evaluation.results.samples import Samples, read_samples
from m3.evaluation.results.store import Answer, Store
from m3.evaluation.statistics import Interval, retention


@dataclass(frozen=True)
class Reply:
    """An answer shown in the report."""

    text: str
    # None where the document has no score of its own, or one that is no share
    is_right: bool | None


def _checked(cell: CellRow) -> CellRow:
    """Sweeps from before took what is no number (0 / 0 in a task's metric) for a score."""
    if cell.value is None or math.isfinite(cell.value):
        return cell
    return replace(
        cell,
        status="failed",
        value=None,
        stderr=None,
        error=f"the harness gave {cell.value} for {cell.metric}",
    )


@dataclass(frozen=True)
class Summary(Scores):
    """`Scores`, and what the store says of each document."""

    @classmethod
    def read(cls, run: Path) -> "Summary":
        """Reads a run folder.

        Raises:
            ValueError: it is none, or no cell of it was scored.
        """
        cells = tuple(map(_checked, read_rows(run / "cells.csv", CellRow)))
        if not any(cell.status == "ok" for cell in cells):
            if not cells:
                raise ValueError(
                    f"{run} has no scores, but may have files for servers: m3 submit "
                    f"{run} collects them"
                )
            raise ValueError(f"no cell of {run} was scored; its cells.csv says why each failed")
        shown, costs = run / "examples" / "examples.json", read_rows(run / "cost.csv", CostRow)
        return cls(
            run=run,
            models=read_list(run / "models.json", ModelRow),
            cells=cells,
            costs=tuple(row for row in costs if not row.task),
            task_costs=tuple(row for row in costs if row.task),
            latencies=tuple(read_rows(run / "latency.csv", LatencyRow)),
            baselines=read_object(run / "baselines.json"),
            examples=read_list(shown, Example) if shown.exists() else (),
            environment=read_object(run / "environment.json"),
        )

    @cached_property
    def _store(self) -> Store:
        folder = self.run / "store"
        if not any(folder.glob("*.jsonl")):
            raise ValueError(
                f"{folder} has no answers: the report is made of them; copy it from "
                "where the sweep ran"
            )
        return Store(folder)

    @cached_property
    def samples(self) -> dict[tuple[str, str], Samples]:
        """(model, task) -> scores by document, at the scales that were scored; without tasks
        that have none of their own.
        """
        found = {}
        for model in self.models:
            for task in self.tasks:
                scales = [
                    scale
                    for scale in self.scales
                    if self.score(model.name, task, scale) is not None
                ]
                if scales:
                    metric = self._primary[model.name, task, scales[0]].metric
                    read = read_samples(self.run, self._store, model.name, task, scales, metric)
                    if read is not None:
                        found[model.name, task] = read
        return found

    @cached_property
    def units(self) -> dict[str, float]:
        """Task -> what a document's score is worth in the table: 100 for a share, 1 where both
        count in the same points.

        Without tasks whose documents count in another unit than the table (a judge's 0 to 5 under
        an accuracy, the right answers under MME's points): differences of them would not be
        differences of the score.
        """
        found = {}
        for task in self.tasks:
            of_task = {model: one for (model, name), one in self.samples.items() if name == task}
            if not of_task:
                continue
            if self.kinds[task].is_share and all(
                ((s.scores >= 0) & (s.scores <= 1)).all() for s in of_task.values()
            ):
                found[task] = 100.0
                continue
            pairs = [
                (self._primary[model, task, scale].value or 0.0, float(one.at(scale).mean()))
                for model, one in of_task.items()
                for scale in one.scales
            ]
            if all(math.isclose(value, mean, rel_tol=1e-6, abs_tol=1e-6) for value, mean in pairs):
                found[task] = self.percent(task)
        return found

    def oracle(self, model: str, task: str) -> Oracle | None:
        """The oracle of a model on a task, more being better (1 - share of errors).

        None where documents have no scores of their own, an error has no end, there is one scale
        alone, or a cell failed: what the largest scale scores, and which is the smallest right one,
        are then not known.
        """
        samples = self.samples.get((model, task))
        if samples is None or len(samples.scales) < 2 or samples.scales != self.scales:
            return None
        scores, row = towards_better(samples.scores, self.kinds[task]), self.baselines.get(task)
        if scores is None:
            return None
        chance = (
            None
            if row is None
            else row["chance"]
            if self.kinds[task].higher_is_better
            else 1 - row["chance"]
        )
        return oracle(
            scores,
            samples.tokens,
            samples.scales,
            chance if chance is not None and 0 <= chance < 1 else None,
        )

    def calibration(self, model: str, task: str, scale: int) -> Calibration | None:
        """Of the generated answers; None where one has no confidence, or a score that is no
        share.
        """
        samples = self.samples.get((model, task))
        if (
            samples is None
            or scale not in samples.scales
            or not ((samples.scores >= 0) & (samples.scores <= 1)).all()
        ):
            return None
        sure = samples.confidences[:, samples.scales.index(scale)]
        scores = towards_better(samples.at(scale), self.kinds[task])
        return (
            None
            if scores is None or np.isnan(sure).any()
            else calibration(sure.tolist(), scores.tolist())
        )

    def retention(self, model: str, scale: int) -> Interval | None:
        """Mean over tasks of the score's share of that at the largest scale, in per cent; of
        errors, of what is no error.
        """
        parts = []
        for task in self.averaged:
            samples = self.samples.get((model, task))
            if (
                samples is None
                or scale not in samples.scales
                or self.scales[-1] not in samples.scales
            ):
                return None
            mine, whole = (
                towards_better(samples.at(one), self.kinds[task])
                for one in (scale, self.scales[-1])
            )
            if mine is None or whole is None:
                return None
            parts.append((mine.tolist(), whole.tolist(), samples.images))
        return retention(parts) if parts else None

    @cached_property
    def routings(self) -> dict[tuple[str, int], Routing]:
        """(model, scale) -> the experts that the recorded prompts chose, added up over the
        tasks; without what has none.
        """
        found: dict[tuple[str, int], Routing] = {}
        for cell in self._primary.values():
            for key in (
                read_keys(self.run, cell.model, cell.task, cell.scale).values()
                if cell.value is not None
                else ()
            ):
                text = self._store.answer(key).routing
                if text is not None:
                    one, at = Routing.decoded(text), (cell.model, cell.scale)
                    found[at] = found[at] + one if at in found else one
        return found

    def reply(self, example: Example, model: str, scale: int) -> Reply | None:
        """What a model answered to an example at a scale."""
        if self.score(model, example.task, scale) is None:
            return None
        key = read_keys(self.run, model, example.task, scale)[example.doc_id]
        answer: Answer = self._store.answer(key)
        score = self._store.scores(key).get(self._primary[model, example.task, scale].metric)
        text = answer.text
        if answer.log_likelihood is not None:
            text = f"log-likelihood {answer.log_likelihood[0]:.2f}"
        kind = self.kinds[example.task]
        if score is not None and kind.is_share and self.units.get(example.task) == 1.0:
            score /= 100  # documents that count in per cent
        if score is None or not 0 <= score <= 1:
            return Reply(text, None)
        good = towards_better(np.asarray([score]), kind)
        return Reply(text, None if good is None else bool(good[0] >= 0.5))
