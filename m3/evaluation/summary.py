"""What a sweep found, from its folder alone: scores with errors, means, differences between models, cost.

In: a run folder (run_folder.py). Out: `Summary`, which the table, the charts and the page are made of.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from m3.evaluation.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    read_keys,
    read_rows,
    write_text,
)
from m3.evaluation.statistics import Difference, Mean, mean_of_means, paired_bootstrap
from m3.evaluation.store import Answer, Store


@dataclass(frozen=True)
class Reply:
    """An answer shown in the report."""

    text: str
    is_right: bool


@dataclass(frozen=True)
class Summary:
    run: Path
    models: tuple[ModelRow, ...]
    cells: tuple[CellRow, ...]
    costs: tuple[CostRow, ...]
    latencies: tuple[LatencyRow, ...]
    baselines: dict[str, dict[str, float]]
    examples: tuple[Example, ...]
    environment: dict[str, object]

    @classmethod
    def read(cls, run: Path) -> "Summary":
        """Reads a run folder.

        Raises:
            ValueError: it is none, or no cell of it was scored.
        """
        cells = tuple(read_rows(run / "cells.csv", CellRow))
        if not any(cell.status == "ok" for cell in cells):
            raise ValueError(f"no cell of {run} was scored; its cells.csv says why each failed")
        shown = run / "examples" / "examples.json"
        return cls(
            run=run,
            models=tuple(ModelRow(**row) for row in json.loads((run / "models.json").read_text(encoding="utf-8"))),
            cells=cells,
            costs=tuple(read_rows(run / "cost.csv", CostRow)),
            latencies=tuple(read_rows(run / "latency.csv", LatencyRow)),
            baselines=json.loads((run / "baselines.json").read_text(encoding="utf-8")),
            examples=tuple(Example(**row) for row in json.loads(shown.read_text("utf-8"))) if shown.exists() else (),
            environment=json.loads((run / "environment.json").read_text(encoding="utf-8")),
        )

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return tuple(sorted({cell.scale for cell in self.cells}))

    @cached_property
    def _primary(self) -> dict[tuple[str, str, int], CellRow]:
        return {(cell.model, cell.task, cell.scale): cell for cell in self.cells if cell.is_primary}

    @cached_property
    def _store(self) -> Store:
        return Store(self.run / "store")

    def family(self, task: str) -> str:
        """The task's name without what all tasks' names begin with."""
        if len(self.tasks) == 1:
            return task
        columns = zip(*(name.split("_") for name in self.tasks), strict=False)
        shared = next((i for i, words in enumerate(columns) if len(set(words)) > 1), 0)
        return "_".join(task.split("_")[shared:])

    def percent(self, task: str) -> float:
        """100 where the task's metric is a share, 1 where it has another unit."""
        values = [cell.value for cell in self.cells if cell.task == task and cell.is_primary and cell.value is not None]
        return 100.0 if all(0 <= value <= 1 for value in values) else 1.0

    def score(self, model: str, task: str, scale: int) -> Mean | None:
        """Score in percent (or the metric's own unit); None where the cell failed or was not run."""
        cell = self._primary.get((model, task, scale))
        if cell is None or cell.value is None:
            return None
        factor = self.percent(task)
        return Mean(
            cell.value * factor, math.nan if cell.stderr is None else cell.stderr * factor, cell.n, cell.clusters
        )

    def mean(self, model: str, scale: int) -> Mean | None:
        """Unweighted mean over the tasks; None where one of them has no score."""
        scores = [self.score(model, task, scale) for task in self.tasks]
        found = [score for score in scores if score is not None]
        return mean_of_means(found) if len(found) == len(scores) else None

    def baseline(self, name: str, task: str | None = None) -> float | None:
        """`chance` or `majority` of a task, or the mean over the tasks, in percent; None where the suite has none."""
        rows = [self.baselines.get(one) for one in ([task] if task else self.tasks)]
        values = [row[name] * 100 for row in rows if row is not None]
        return sum(values) / len(values) if values and len(values) == len(rows) else None

    def cost(self, model: str, scale: int) -> CostRow | None:
        return next((row for row in self.costs if row.model == model and row.scale == scale), None)

    def latency(self, model: str, scale: int, batch_size: int = 1) -> LatencyRow | None:
        """What was measured; None where nothing was."""
        asked = (model, scale, batch_size)
        return next((row for row in self.latencies if (row.model, row.scale, row.batch_size) == asked), None)

    def difference(self, scale: int, other: str) -> Difference | None:
        """Mean of the first model minus that of `other` at a scale: paired bootstrap over documents, by image.

        Every task weighs the same, whatever its number of documents. None where a cell is missing.
        """
        first = self.models[0].name
        left, right, clusters = [], [], []
        for task in self.tasks:
            if self.score(first, task, scale) is None or self.score(other, task, scale) is None:
                return None
            mine, theirs = (read_keys(self.run, name, task, scale) for name in (first, other))
            metric = self._primary[first, task, scale].metric
            for doc_id in sorted(set(mine) & set(theirs)):
                a, b = (self._store.scores(keys[doc_id]).get(metric) for keys in (mine, theirs))
                if a is None or b is None:
                    return None
                weight = self.percent(task) / len(mine)
                left.append(a * weight)
                right.append(b * weight)
                clusters.append(self._store.answer(mine[doc_id]).images)
        weight = len(left) / len(self.tasks)
        return paired_bootstrap([a * weight for a in left], [b * weight for b in right], clusters)

    def reply(self, example: Example, model: str, scale: int) -> Reply | None:
        """What a model answered to an example at a scale."""
        if self.score(model, example.task, scale) is None:
            return None
        key = read_keys(self.run, model, example.task, scale)[example.doc_id]
        answer: Answer = self._store.answer(key)
        score = self._store.scores(key).get(self._primary[model, example.task, scale].metric, 0.0)
        text = answer.text
        if answer.log_likelihood is not None:
            text = f"log-likelihood {answer.log_likelihood[0]:.2f}"
        return Reply(text, score >= 0.5)

    def write_csv(self) -> Path:
        """summary.csv: a row per model and scale, with every task, the mean, and the difference to the first model."""
        names = [name for task in self.tasks for name in (self.family(task), f"{self.family(task)}_stderr")]
        header = ["model", "scale", "trained_at_scale", "visual_tokens", "first_token_gflops", "first_token_ms", *names]
        header += ["mean", "mean_stderr", "behind_first", "behind_first_low", "behind_first_high"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for model in self.models:
            for scale in self.scales:
                writer.writerow(self._csv_row(model, scale))
        path = self.run / "summary.csv"
        write_text(path, text.getvalue())
        return path

    def _csv_row(self, model: ModelRow, scale: int) -> list[str]:
        cost, mean, latency = (
            self.cost(model.name, scale),
            self.mean(model.name, scale),
            self.latency(model.name, scale),
        )
        is_first = model == self.models[0]
        behind = None if is_first else self.difference(scale, model.name)
        scores: list[float | None] = []
        for task in self.tasks:
            score = self.score(model.name, task, scale)
            scores += [None, None] if score is None else [score.value, score.stderr]
        numbers: Sequence[int | float | None] = [
            None if cost is None else cost.visual_tokens,
            None if cost is None else gflops(cost),
            None if latency is None else latency.first_token_s * 1e3,
            *scores,
            *((None, None) if mean is None else (mean.value, mean.stderr)),
            *((None,) * 3 if behind is None else (behind.value, behind.low, behind.high)),
        ]
        shown = ["" if number is None else f"{number:.6g}" for number in numbers]
        return [model.name, str(scale), str(model.is_trained(scale)), *shown]


def gflops(cost: CostRow) -> float:
    """Billions of operations up to the first answer token: tower, connector and prefill."""
    return cost.first_token_flops / 1e9
