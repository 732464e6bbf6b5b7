"""What a sweep found, from its folder alone: scores with errors, means, the oracle, retention, cost, what is published.

In: a run folder (run_folder.py). Out: `Summary`, which the table, the charts and the page are made of.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from m3.evaluation.calibration import Calibration, calibration
from m3.evaluation.direction import ACCURACY, ARROW, LESS, Kind, said_by_results, towards_better
from m3.evaluation.oracle import Oracle, oracle
from m3.evaluation.published import PublishedScore, beside
from m3.evaluation.routing import Routing
from m3.evaluation.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    read_keys,
    read_rows,
    result_path,
)
from m3.evaluation.samples import Samples, read_samples
from m3.evaluation.statistics import Interval, Mean, mean_of_means, retention
from m3.evaluation.store import Answer, Store


@dataclass(frozen=True)
class Reply:
    """An answer shown in the report."""

    text: str
    is_right: bool | None  # None where the document has no score of its own, or one that is no share


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
            if not cells:
                raise ValueError(f"{run} has no scores, but may have files for servers: m3 submit {run} collects them")
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
    def submitted(self) -> tuple[str, ...]:
        """Tasks without a score of ours, which a server has: their files are there (m3 submit)."""
        found = sorted(
            {path.name.rpartition("@")[0] for path in self.run.glob("submissions/*/*@*") if any(path.iterdir())}
        )
        return tuple(task for task in found if task not in self.tasks)

    @cached_property
    def scales(self) -> tuple[int, ...]:
        return tuple(sorted({cell.scale for cell in self.cells}))

    @cached_property
    def _primary(self) -> dict[tuple[str, str, int], CellRow]:
        return {(cell.model, cell.task, cell.scale): cell for cell in self.cells if cell.is_primary}

    def _scored(self, task: str) -> list[CellRow]:
        return [cell for cell in self._primary.values() if cell.task == task and cell.value is not None]

    def metric(self, task: str) -> str | None:
        """What the tables show of a task; None where no cell of it was scored."""
        return next((cell.metric for cell in self._scored(task)), None)

    @cached_property
    def _directions(self) -> dict[str, bool | None]:
        """Task -> whether more of its metric is better; None where neither cells.csv nor the harness's result says."""
        found: dict[str, bool | None] = {}
        for task in self.tasks:
            cells = self._scored(task)
            said = {cell.higher_is_better for cell in cells} - {None}
            for cell in cells[:1] if not said else ():
                path = result_path(self.run, cell.model, task, cell.scale)
                said = {said_by_results(path, task, cell.metric)} - {None}
            if len(said) > 1:
                raise ValueError(f"{self.run}/cells.csv says both that more and that less of {task} is better")
            found[task] = next(iter(said), None)
        return found

    @cached_property
    def undirected(self) -> tuple[str, ...]:
        """Scored tasks that do not say which way is better: more is taken to be."""
        return tuple(task for task, said in self._directions.items() if said is None and self._scored(task))

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Task -> what its scores are like."""
        found = {}
        for task, said in self._directions.items():
            values = [cell.value for cell in self._scored(task) if cell.value is not None]
            is_higher = said is not False
            is_share = all(0 <= value <= (100 if is_higher else 1) for value in values)
            found[task] = Kind(is_higher, is_share)
        return found

    @cached_property
    def averaged(self) -> tuple[str, ...]:
        """The tasks of the mean: all where they are of one kind, else those of accuracies, or none."""
        if len(set(self.kinds.values())) == 1:
            return self.tasks
        return tuple(task for task, kind in self.kinds.items() if kind == ACCURACY)

    def kind(self, task: str | None) -> Kind:
        """Of a task, or of the mean."""
        return self.kinds[task or self.averaged[0]] if task or self.averaged else ACCURACY

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

    def label(self, task: str) -> str:
        """The family, with an arrow where less is better."""
        return self.family(task) + ("" if self.kinds[task].higher_is_better else ARROW)

    @cached_property
    def direction_note(self) -> str:
        """What a reader must know of the tasks' metrics beside their numbers; empty where all are accuracies."""
        parts = []
        if any(not kind.higher_is_better for kind in self.kinds.values()):
            parts.append(f"{ARROW.strip()}: {LESS}.")
        left_out = [self.label(task) for task in self.tasks if task not in self.averaged]
        if left_out:
            parts.append(f"The mean leaves out {', '.join(left_out)}: other units, or another direction.")
        if self.undirected:
            names = ", ".join(self.family(task) for task in self.undirected)
            parts.append(
                f"Neither the run nor its tasks say whether more or less is better of {names}: more is taken to be."
            )
        return " ".join(parts)

    def percent(self, task: str) -> float:
        """100 where the task's metric is a share, 1 where it has another unit."""
        return 100.0 if all(0 <= cell.value <= 1 for cell in self._scored(task) if cell.value is not None) else 1.0

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
        """Unweighted mean over the tasks that can be averaged; None where one of them has no score, or there is none."""
        scores = [self.score(model, task, scale) for task in self.averaged]
        found = [score for score in scores if score is not None]
        return mean_of_means(found) if found and len(found) == len(scores) else None

    def baseline(self, name: str, task: str | None = None) -> float | None:
        """`chance` or `majority` of a task, or the mean over the tasks, in percent; None where the suite has none."""
        rows = [self.baselines.get(one) for one in ([task] if task else self.averaged)]
        values = [row[name] * 100 for row in rows if row is not None]
        return sum(values) / len(values) if values and len(values) == len(rows) else None

    def cost(self, model: str, scale: int) -> CostRow | None:
        return next((row for row in self.costs if row.model == model and row.scale == scale), None)

    def latency(self, model: str, scale: int, batch_size: int = 1) -> LatencyRow | None:
        """What was measured; None where nothing was."""
        asked = (model, scale, batch_size)
        return next((row for row in self.latencies if (row.model, row.scale, row.batch_size) == asked), None)

    @cached_property
    def samples(self) -> dict[tuple[str, str], Samples]:
        """(model, task) -> scores by document, at the scales that were scored; without tasks that have none of their own."""
        found = {}
        for model in self.models:
            for task in self.tasks:
                scales = [scale for scale in self.scales if self.score(model.name, task, scale) is not None]
                if scales:
                    metric = self._primary[model.name, task, scales[0]].metric
                    read = read_samples(self.run, self._store, model.name, task, scales, metric)
                    if read is not None:
                        found[model.name, task] = read
        return found

    @cached_property
    def units(self) -> dict[str, float]:
        """Task -> what a document's score is worth in the table: 100 for a share, 1 where both count in the same points.

        Without tasks whose documents count in another unit than the table (a judge's 0 to 5 under an accuracy, the right
        answers under MME's points): differences of them would not be differences of the score.
        """
        found = {}
        for task in self.tasks:
            of_task = {model: one for (model, name), one in self.samples.items() if name == task}
            if not of_task:
                continue
            if self.kinds[task].is_share and all(((s.scores >= 0) & (s.scores <= 1)).all() for s in of_task.values()):
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

    def curve(self, model: str, task: str | None = None) -> dict[int, Mean]:
        """Scale -> score of a task, or the mean over the tasks, where there is one."""
        scores = {scale: self.score(model, task, scale) if task else self.mean(model, scale) for scale in self.scales}
        return {scale: score for scale, score in scores.items() if score is not None}

    def oracle(self, model: str, task: str) -> Oracle | None:
        """The oracle of a model on a task, more being better (1 - share of errors).

        None where documents have no scores of their own, an error has no end, or there is one scale alone.
        """
        samples = self.samples.get((model, task))
        if samples is None or len(samples.scales) < 2:
            return None
        scores, row = towards_better(samples.scores, self.kinds[task]), self.baselines.get(task)
        if scores is None:
            return None
        chance = None if row is None else row["chance"] if self.kinds[task].higher_is_better else 1 - row["chance"]
        return oracle(
            scores, samples.tokens, samples.scales, chance if chance is not None and 0 <= chance < 1 else None
        )

    def calibration(self, model: str, task: str, scale: int) -> Calibration | None:
        """Of the generated answers; None where one has no confidence, or a score that is no share."""
        samples = self.samples.get((model, task))
        if samples is None or scale not in samples.scales or not ((samples.scores >= 0) & (samples.scores <= 1)).all():
            return None
        sure = samples.confidences[:, samples.scales.index(scale)]
        scores = towards_better(samples.at(scale), self.kinds[task])
        return None if scores is None or np.isnan(sure).any() else calibration(sure.tolist(), scores.tolist())

    def retention(self, model: str, scale: int) -> Interval | None:
        """Mean over tasks of the score's share of that at the largest scale, in per cent; of errors, of what is no error."""
        parts = []
        for task in self.averaged:
            samples = self.samples.get((model, task))
            if samples is None or scale not in samples.scales or self.scales[-1] not in samples.scales:
                return None
            mine, whole = (towards_better(samples.at(one), self.kinds[task]) for one in (scale, self.scales[-1]))
            if mine is None or whole is None:
                return None
            parts.append((mine.tolist(), whole.tolist(), samples.images))
        return retention(parts) if parts else None

    @cached_property
    def routings(self) -> dict[tuple[str, int], Routing]:
        """(model, scale) -> the experts that the recorded prompts chose, added up over the tasks; without what has none."""
        found: dict[tuple[str, int], Routing] = {}
        for cell in self._primary.values():
            for key in (
                read_keys(self.run, cell.model, cell.task, cell.scale).values() if cell.value is not None else ()
            ):
                text = self._store.answer(key).routing
                if text is not None:
                    one, at = Routing.decoded(text), (cell.model, cell.scale)
                    found[at] = found[at] + one if at in found else one
        return found

    def published(self, task: str) -> list[PublishedScore]:
        """What papers report for the task at a stated number of tokens."""
        return [score for score in beside(task) if score.tokens is not None]

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
        if score is None or not 0 <= score <= 1:
            return Reply(text, None)
        good = towards_better(np.asarray([score]), kind)
        return Reply(text, None if good is None else bool(good[0] >= 0.5))


def gflops(cost: CostRow) -> float:
    """Billions of operations up to the first answer token: tower, connector and prefill."""
    return cost.first_token_flops / 1e9
