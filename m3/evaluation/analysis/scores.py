"""Scores of a sweep, cell by cell, from its folder alone: with errors, means, directions, costs and
published scores.

In: the tables of a run folder (run_folder.py). Out: `Scores`. What single documents tell beyond
    them: summary.py.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from m3.evaluation.analysis.metric_kind import ACCURACY, ARROW, LESS, Kind
from m3.evaluation.cost.latency import Level, levels
from m3.evaluation.published import PublishedScore, beside
from m3.evaluation.results.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    read_cell_name,
)
from m3.evaluation.statistics import Mean, mean_of_means
from m3.evaluation.suites import unit_of
from m3.nesting import read_budget
from m3.processing.scale_policy import is_budget


@dataclass(frozen=True)
class Scores:
    """One run, cell by cell. Numbers are in percent, or in the metric's own unit."""

    run: Path
    models: tuple[ModelRow, ...]
    cells: tuple[CellRow, ...]
    costs: tuple[CostRow, ...]  # of all prompts
    task_costs: tuple[CostRow, ...]  # of each task's
    latencies: tuple[LatencyRow, ...]
    baselines: dict[str, dict[str, float]]
    examples: tuple[Example, ...]
    environment: dict[str, object]
    choice_latencies: tuple[LatencyRow, ...] = ()  # of choices among the budgets

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.task for cell in self.cells))

    @cached_property
    def submitted(self) -> tuple[str, ...]:
        """Tasks without a score of ours, which a server has: their files are there (m3 submit)."""
        submitted_tasks = sorted(
            {
                read_cell_name(submission_folder.name)[0]
                for submission_folder in self.run.glob("submissions/*/*@*")
                if any(submission_folder.iterdir())
            }
        )
        return tuple(task for task in submitted_tasks if task not in self.tasks)

    @cached_property
    def scales(self) -> tuple[int | str, ...]:
        """The budgets, ascending: fewest tokens first, of as many the lowest resolution."""
        settings = {cell.scale for cell in self.cells}
        return tuple(sorted(filter(is_budget, settings), key=read_budget))

    @cached_property
    def choices(self) -> tuple[int | str, ...]:
        """Choices among the budgets (auto, auto:rule, 144+1), in the order of the sweep."""
        settings = dict.fromkeys(cell.scale for cell in self.cells)
        return tuple(setting for setting in settings if not is_budget(setting))

    def choices_of(self, model: str) -> tuple[int | str, ...]:
        """The choices that a model has rows of: `auto` of those with a router alone."""
        own_settings = {cell.scale for cell in self.cells if cell.model == model}
        return tuple(choice for choice in self.choices if choice in own_settings)

    @cached_property
    def _primary(self) -> dict[tuple[str, str, int | str], CellRow]:
        return {(cell.model, cell.task, cell.scale): cell for cell in self.cells if cell.is_primary}

    def _scored(self, task: str) -> list[CellRow]:
        return [
            cell for cell in self._primary.values() if cell.task == task and cell.value is not None
        ]

    def metric(self, task: str) -> str | None:
        """The metric of a task in the tables; None where no cell of it was scored."""
        return next((cell.metric for cell in self._scored(task)), None)

    @cached_property
    def _directions(self) -> dict[str, bool | None]:
        """Task -> whether more of its metric is better; None where cells.csv does not say."""
        task_directions: dict[str, bool | None] = {}
        for task in self.tasks:
            scored_cells = self._scored(task)
            stated_directions = {cell.higher_is_better for cell in scored_cells} - {None}
            if len(stated_directions) > 1:
                raise ValueError(
                    f"{self.run}/cells.csv says both that more and that less of {task} is better"
                )
            task_directions[task] = next(iter(stated_directions), None)
        return task_directions

    @cached_property
    def undirected(self) -> tuple[str, ...]:
        """Scored tasks that do not say which way is better: more is taken to be."""
        return tuple(
            task
            for task, stated_direction in self._directions.items()
            if stated_direction is None and self._scored(task)
        )

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Task -> what its scores are like."""
        task_kinds = {}
        for task, stated_direction in self._directions.items():
            is_higher = stated_direction is not False
            is_share = self.metric_units[task] in ("share", "percent")
            task_kinds[task] = Kind(is_higher, is_share)
        return task_kinds

    @cached_property
    def averaged(self) -> tuple[str, ...]:
        """The tasks of the mean: all where they are of one kind, else those of accuracies, or
        none.
        """
        if len(set(self.kinds.values())) == 1:
            return self.tasks
        return tuple(task for task, kind in self.kinds.items() if kind == ACCURACY)

    def kind(self, task: str | None) -> Kind:
        """Direction and unit of a task, or of the mean."""
        return self.kinds[task or self.averaged[0]] if task or self.averaged else ACCURACY

    def family(self, task: str) -> str:
        """The task's name without what all tasks' names begin with."""
        if len(self.tasks) == 1:
            return task
        word_columns = zip(*(task_name.split("_") for task_name in self.tasks), strict=False)
        shared_words = next(
            (i for i, column_words in enumerate(word_columns) if len(set(column_words)) > 1), 0
        )
        return "_".join(task.split("_")[shared_words:])

    def label(self, task: str) -> str:
        """The family, with an arrow where less is better."""
        return self.family(task) + ("" if self.kinds[task].higher_is_better else ARROW)

    @cached_property
    def direction_note(self) -> str:
        """A note on metrics that are no accuracies, for readers of tables; empty where all are."""
        note_sentences = []
        if any(not kind.higher_is_better for kind in self.kinds.values()):
            note_sentences.append(f"{ARROW.strip()}: {LESS}.")
        left_out = [self.label(task) for task in self.tasks if task not in self.averaged]
        if left_out:
            note_sentences.append(
                f"The mean leaves out {', '.join(left_out)}: other units, or another direction."
            )
        if self.undirected:
            task_names = ", ".join(self.family(task) for task in self.undirected)
            note_sentences.append(
                f"Neither the run nor its tasks say whether more or less is better of {task_names}: "
                "more is taken to be."
            )
        if self.unknown_units:
            task_names = ", ".join(self.family(task) for task in self.unknown_units)
            note_sentences.append(
                f"The run does not record the unit of {task_names}: scores of at most 1 are taken "
                "for shares of one."
            )
        return " ".join(note_sentences)

    @cached_property
    def metric_units(self) -> dict[str, str]:
        """Task -> share (of one), percent or points: as the suite or the cells say
        (`CellRow.unit`).

        Where no cell of a task says (metrics that are no mean over documents), scores
        all within [0, 1] are taken for shares of one, and others up to 100, of which more is
        better, for per cents (`unknown_units`).
        """
        task_units: dict[str, str] = {}
        for task in self.tasks:
            scored_cells = self._scored(task)
            cell_values = [cell.value for cell in scored_cells if cell.value is not None]
            stated_units = {cell.unit for cell in scored_cells} - {""}
            share_limit = 100 if self._directions[task] is not False else 1
            if (
                unit_of(task) == "points"
                or "points" in stated_units
                or (not stated_units and any(not 0 <= x <= share_limit for x in cell_values))
            ):
                task_units[task] = "points"
            elif "percent" in stated_units or (
                not stated_units and any(cell_value > 1 for cell_value in cell_values)
            ):
                task_units[task] = "percent"
            else:
                task_units[task] = "share"
        return task_units

    @cached_property
    def unknown_units(self) -> tuple[str, ...]:
        """Tasks with scores of which neither suite nor cells say the unit, and whose size alone
        makes them shares of one.
        """
        return tuple(
            task
            for task, task_unit in self.metric_units.items()
            if task_unit == "share"
            and any(cell.value for cell in self._scored(task))
            and not any(c.unit for c in self._scored(task))
        )

    def percent(self, task: str) -> float:
        """100 where the task's metric is a share of one, 1 where it has another unit."""
        return 100.0 if self.metric_units[task] == "share" else 1.0

    def score(self, model: str, task: str, scale: int | str) -> Mean | None:
        """Score in percent (or the metric's own unit); None where the cell failed or was not
        run.
        """
        primary_cell = self._primary.get((model, task, scale))
        if primary_cell is None or primary_cell.value is None:
            return None
        percent_factor = self.percent(task)
        return Mean(
            primary_cell.value * percent_factor,
            math.nan if primary_cell.stderr is None else primary_cell.stderr * percent_factor,
            primary_cell.n,
            primary_cell.clusters,
        )

    def answer_tokens(self, model: str, task: str, scale: int | str) -> float:
        """Mean tokens of the answers of a cell; 0 where it has none."""
        cell = self._primary.get((model, task, scale))
        return 0.0 if cell is None or cell.answer_tokens is None else cell.answer_tokens

    def mean(self, model: str, scale: int | str) -> Mean | None:
        """Unweighted mean over the tasks that can be averaged; None where one of them has no
        score, or there is none.
        """
        task_scores = [self.score(model, task, scale) for task in self.averaged]
        known_scores = [score for score in task_scores if score is not None]
        return (
            mean_of_means(known_scores)
            if known_scores and len(known_scores) == len(task_scores)
            else None
        )

    def baseline(self, name: str, task: str | None = None) -> float | None:
        """`chance` or `majority` of a task, or the mean over the tasks, in percent; None where
        the suite has none.
        """
        baseline_rows = [
            self.baselines.get(task_name) for task_name in ([task] if task else self.averaged)
        ]
        baseline_values = [
            baseline_row[name] * 100 for baseline_row in baseline_rows if baseline_row is not None
        ]
        return (
            sum(baseline_values) / len(baseline_values)
            if baseline_values and len(baseline_values) == len(baseline_rows)
            else None
        )

    def cost(self, model: str, scale: int | str, task: str | None = None) -> CostRow | None:
        """Mean over all prompts, or over those of a task; None where it was not counted."""
        cost_rows, cost_key = (
            (self.costs, (model, scale, ""))
            if task is None
            else (self.task_costs, (model, scale, task))
        )
        return next(
            (
                cost_row
                for cost_row in cost_rows
                if (cost_row.model, cost_row.scale, cost_row.task) == cost_key
            ),
            None,
        )

    def latency(self, model: str, scale: int | str, batch_size: int = 1) -> LatencyRow | None:
        """Measured latency; None where nothing was measured."""
        latency_key = (model, scale, batch_size)
        return next(
            (
                latency_row
                for latency_row in [*self.latencies, *self.choice_latencies]
                if (latency_row.model, latency_row.scale, latency_row.batch_size) == latency_key
            ),
            None,
        )

    def levels(self, model: str, batch_size: int = 1) -> list[Level]:
        """Budgets of a model without a measurable difference in the time to the first token."""
        return levels(
            (row.scale, row.first_token_s, row.first_token_spread_s)
            for row in self.latencies
            if (row.model, row.batch_size) == (model, batch_size)
        )

    def alike(self, model: str, scale: int | str, batch_size: int = 1) -> tuple[int | str, ...]:
        """The other budgets whose time to the first token is not measurably another."""
        own_level = next(
            (level.scales for level in self.levels(model, batch_size) if scale in level.scales), ()
        )
        return tuple(other for other in own_level if other != scale)

    def level_latency(self, model: str, scale: int | str, batch_size: int = 1) -> LatencyRow | None:
        """Measured latency to be drawn: the times to the first token are those of all budgets
        without a measurable difference.
        """
        row = self.latency(model, scale, batch_size)
        if row is None or not is_budget(scale):
            return row
        cpu_levels = levels(
            (other.scale, other.first_token_cpu_s, other.first_token_cpu_spread_s)
            for other in self.latencies
            if (other.model, other.batch_size) == (model, batch_size)
        )
        seconds, cpu_seconds = (
            next(level.seconds for level in of_time if scale in level.scales)
            for of_time in (self.levels(model, batch_size), cpu_levels)
        )
        return replace(row, first_token_s=seconds, first_token_cpu_s=cpu_seconds)

    def curve(self, model: str, task: str | None = None) -> dict[int | str, Mean]:
        """Scale -> score of a task, or the mean over the tasks, where there is one."""
        scale_scores = {
            scale: self.score(model, task, scale) if task else self.mean(model, scale)
            for scale in self.scales
        }
        return {scale: score for scale, score in scale_scores.items() if score is not None}

    def published(self, task: str) -> list[PublishedScore]:
        """Scores that papers report for the task at a stated number of tokens."""
        return [score for score in beside(task) if score.tokens is not None]
