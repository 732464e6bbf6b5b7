"""Summary of a sweep from its folder alone: the scores (scores.py), and results of single
documents.

In: a run folder (run_folder.py). Out: `Summary`: samples, the oracle, retention, calibration, the
experts chosen, replies. The tables, the charts and the page are made of it.
"""

import math
from dataclasses import dataclass
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
from m3.processing.scale_policy import is_budget


@dataclass(frozen=True)
class Reply:
    """An answer shown in the report."""

    text: str
    # None where the document has no score of its own, or one that is no share
    is_right: bool | None


@dataclass(frozen=True)
class Summary(Scores):
    """`Scores`, and what the store says of each document."""

    @classmethod
    def read(cls, run: Path) -> "Summary":
        """Reads a run folder.

        Raises:
            ValueError: it is none, or no cell of it was scored.
        """
        cells = tuple(read_rows(run / "cells.csv", CellRow))
        if not any(cell.status == "ok" for cell in cells):
            if not cells:
                raise ValueError(
                    f"{run} has no scores, but may have files for servers: m3 submit "
                    f"{run} collects them"
                )
            raise ValueError(f"no cell of {run} was scored; its cells.csv says why each failed")
        examples_file, cost_rows = (
            run / "examples" / "examples.json",
            read_rows(run / "cost.csv", CostRow),
        )
        latency_rows = read_rows(run / "latency.csv", LatencyRow)
        return cls(
            run=run,
            models=read_list(run / "models.json", ModelRow),
            cells=cells,
            costs=tuple(cost_row for cost_row in cost_rows if not cost_row.task),
            task_costs=tuple(cost_row for cost_row in cost_rows if cost_row.task),
            latencies=tuple(row for row in latency_rows if is_budget(row.scale)),
            baselines=read_object(run / "baselines.json"),
            examples=read_list(examples_file, Example) if examples_file.exists() else (),
            environment=read_object(run / "environment.json"),
            choice_latencies=tuple(row for row in latency_rows if not is_budget(row.scale)),
        )

    @cached_property
    def _store(self) -> Store:
        store_folder = self.run / "store"
        if not any(store_folder.glob("*.jsonl")):
            raise ValueError(
                f"{store_folder} has no answers: the report is made of them; copy it from "
                "where the sweep ran"
            )
        return Store(store_folder)

    @cached_property
    def samples(self) -> dict[tuple[str, str], Samples]:
        """(model, task) -> scores by document, at the scales that were scored; without tasks
        that have none of their own.
        """
        all_samples = {}
        for model in self.models:
            for task in self.tasks:
                scales = [
                    scale
                    for scale in self.scales
                    if self.score(model.name, task, scale) is not None
                ]
                if scales:
                    metric = self._primary[model.name, task, scales[0]].metric
                    task_samples = read_samples(
                        self.run, self._store, model.name, task, scales, metric
                    )
                    if task_samples is not None:
                        all_samples[model.name, task] = task_samples
        return all_samples

    def choice_samples(self, model: str, task: str, choice: int | str) -> Samples | None:
        """Scores by document of a choice among the budgets, in a single column."""
        if self.score(model, task, choice) is None:
            return None
        metric = self._primary[model, task, choice].metric
        return read_samples(self.run, self._store, model, task, [choice], metric)

    @cached_property
    def units(self) -> dict[str, float]:
        """Task -> what a document's score is worth in the table: 100 for a share, 1 where both
        count in the same points.

        Without tasks whose documents count in another unit than the table (a judge's 0 to 5 under
        an accuracy, the right answers under MME's points): differences of them would not be
        differences of the score.
        """
        document_units = {}
        for task in self.tasks:
            of_task = {
                model: model_samples
                for (model, task_name), model_samples in self.samples.items()
                if task_name == task
            }
            if not of_task:
                continue
            if self.kinds[task].is_share and all(
                ((s.scores >= 0) & (s.scores <= 1)).all() for s in of_task.values()
            ):
                document_units[task] = 100.0
                continue
            value_pairs = [
                (
                    self._primary[model, task, scale].value or 0.0,
                    float(model_samples.at(scale).mean()),
                )
                for model, model_samples in of_task.items()
                for scale in model_samples.scales
            ]
            if all(
                math.isclose(table_value, document_mean, rel_tol=1e-6, abs_tol=1e-6)
                for table_value, document_mean in value_pairs
            ):
                document_units[task] = self.percent(task)
        return document_units

    def oracle(self, model: str, task: str) -> Oracle | None:
        """The oracle of a model on a task, more being better (1 - share of errors).

        None where documents have no scores of their own, an error has no end, there is one scale
        alone, or a cell failed: what the largest scale scores, and which is the smallest right one,
        are then not known.
        """
        samples = self.samples.get((model, task))
        if samples is None or len(samples.scales) < 2 or samples.scales != self.scales:
            return None
        good_scores, baseline_row = (
            towards_better(samples.scores, self.kinds[task]),
            self.baselines.get(task),
        )
        if good_scores is None:
            return None
        chance_level = (
            None
            if baseline_row is None
            else baseline_row["chance"]
            if self.kinds[task].higher_is_better
            else 1 - baseline_row["chance"]
        )
        return oracle(
            good_scores,
            samples.tokens,
            samples.scales,
            chance_level if chance_level is not None and 0 <= chance_level < 1 else None,
        )

    def calibration(self, model: str, task: str, scale: int | str) -> Calibration | None:
        """Calibration of the generated answers; None where one has no confidence, or a score that
        is no share.
        """
        samples = self.samples.get((model, task))
        if (
            samples is None
            or scale not in samples.scales
            or not ((samples.scores >= 0) & (samples.scores <= 1)).all()
        ):
            return None
        scale_confidences = samples.confidences[:, samples.scales.index(scale)]
        good_scores = towards_better(samples.at(scale), self.kinds[task])
        return (
            None
            if good_scores is None or np.isnan(scale_confidences).any()
            else calibration(scale_confidences.tolist(), good_scores.tolist())
        )

    def retention(self, model: str, scale: int | str) -> Interval | None:
        """Mean over tasks of the score's share of that at the largest scale, in per cent; of
        errors, of what is no error.
        """
        task_parts = []
        for task in self.averaged:
            samples = self.samples.get((model, task))
            if (
                samples is None
                or scale not in samples.scales
                or self.scales[-1] not in samples.scales
            ):
                return None
            scale_scores, largest_scores = (
                towards_better(samples.at(compared_scale), self.kinds[task])
                for compared_scale in (scale, self.scales[-1])
            )
            if scale_scores is None or largest_scores is None:
                return None
            task_parts.append((scale_scores.tolist(), largest_scores.tolist(), samples.images))
        return retention(task_parts) if task_parts else None

    @cached_property
    def routings(self) -> dict[tuple[str, int | str], Routing]:
        """(model, scale) -> the experts that the recorded prompts chose, added up over the
        tasks; without what has none.
        """
        all_routings: dict[tuple[str, int | str], Routing] = {}
        for cell in self._primary.values():
            for answer_key in (
                read_keys(self.run, cell.model, cell.task, cell.scale).values()
                if cell.value is not None
                else ()
            ):
                routing_text = self._store.answer(answer_key).routing
                if routing_text is not None:
                    prompt_routing, model_scale = (
                        Routing.decoded(routing_text),
                        (cell.model, cell.scale),
                    )
                    all_routings[model_scale] = (
                        all_routings[model_scale] + prompt_routing
                        if model_scale in all_routings
                        else prompt_routing
                    )
        return all_routings

    def reply(self, example: Example, model: str, scale: int | str) -> Reply | None:
        """A model's answer to an example at a scale."""
        if self.score(model, example.task, scale) is None:
            return None
        answer_key = read_keys(self.run, model, example.task, scale)[example.doc_id]
        answer: Answer = self._store.answer(answer_key)
        score = self._store.scores(answer_key).get(self._primary[model, example.task, scale].metric)
        reply_text = answer.text
        if answer.log_likelihood is not None:
            reply_text = f"log-likelihood {answer.log_likelihood[0]:.2f}"
        metric_kind = self.kinds[example.task]
        if score is not None and metric_kind.is_share and self.units.get(example.task) == 1.0:
            score /= 100  # documents that count in per cent
        if score is None or not 0 <= score <= 1:
            return Reply(reply_text, None)
        good_score = towards_better(np.asarray([score]), metric_kind)
        return Reply(reply_text, None if good_score is None else bool(good_score[0] >= 0.5))
