"""Two budgets, two models or two runs against each other, document by document.

In: `Summary`s. Out: differences with intervals (paired bootstrap within each task, images drawn
with all their documents), and `Change`s between two runs, corrected for their number. `m3 report A
B` shows them; `m3 sweep --baseline` fails on the drops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from m3.evaluation.analysis.metric_kind import LESS
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.statistics import Difference, TaskPairs, holm, mean_difference

LEVEL = 0.05
"""A drop is beyond the noise where its corrected p is below this."""


@dataclass(frozen=True)
class Side:
    """One of the two things compared: a model of a run at a scale."""

    summary: Summary
    model: str
    scale: int | str


@dataclass(frozen=True)
class Change:
    """From the second run (the older) to the first, in the unit of the table."""

    model: str
    other: str
    task: str | None  # None: the mean over the tasks
    scale: int | str
    difference: Difference
    p: float  # Student's t, clustered by image within each task
    p_holm: float  # corrected for all changes of the same kind (means, or tasks)
    higher_is_better: bool
    tasks: tuple[str, ...]  # that it is over
    left_out: tuple[str, ...] = ()  # tasks of the mean that cannot be compared

    @property
    def is_significant(self) -> bool:
        return self.p_holm < LEVEL

    @property
    def is_for_better(self) -> bool:
        return (self.difference.value > 0) == self.higher_is_better

    @property
    def is_drop(self) -> bool:
        """For the worse beyond the noise: a score that fell, or an error that rose."""
        return self.is_significant and not self.is_for_better


def difference(a: Side, b: Side) -> Difference | None:
    """Mean of `a` minus mean of `b` over the documents that both have, in the metric's own sign;
    every task weighs the same.

    Over those tasks of a's mean that are `comparable`; None where there is none.
    """
    tasks = comparable(a, b, a.summary.averaged)
    return mean_difference(_pairs(a, b, tasks)) if tasks else None


def comparable(a: Side, b: Side, tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks with scores by document, in the unit of the table, on both sides."""
    return tuple(task for task in tasks if all(_is_known(side, task) for side in (a, b)))


def _is_known(side: Side, task: str) -> bool:
    samples = side.summary.samples.get((side.model, task))
    return task in side.summary.units and samples is not None and side.scale in samples.scales


def _pairs(a: Side, b: Side, tasks: Sequence[str]) -> list[TaskPairs]:
    """`tasks`: at least one, and comparable."""
    score_pairs = []
    for task in tasks:
        own_samples, other_samples = (
            a.summary.samples[a.model, task],
            b.summary.samples[b.model, task],
        )
        other_rows = {
            document_key: row_index
            for row_index, document_key in enumerate(
                zip(other_samples.doc_ids, other_samples.documents, strict=True)
            )
        }
        common_rows = [
            (row_index, other_rows[document_key])
            for row_index, document_key in enumerate(
                zip(own_samples.doc_ids, own_samples.documents, strict=True)
            )
            if document_key in other_rows
        ]
        if not common_rows:
            raise ValueError(
                f"{a.summary.run} and {b.summary.run} have no document of {task} in common: they "
                "were run on other data"
            )
        own_scores, other_scores = (
            side.summary.units[task] * side_samples.at(side.scale)
            for side, side_samples in ((a, own_samples), (b, other_samples))
        )
        own_indices, other_indices = (list(column) for column in zip(*common_rows, strict=True))
        score_pairs.append(
            TaskPairs(
                own_scores[own_indices].tolist(),
                other_scores[other_indices].tolist(),
                [own_samples.images[row_index] for row_index in own_indices],
            )
        )
    return score_pairs


def compare(new_run: Summary, old_run: Summary) -> list[Change]:
    """Every model of `new` against its namesake of `old` (or, where none has one, the first against
    the first).

    The means over the common tasks at each common scale, then each task, each kind corrected by
    Holm.

    Raises:
        ValueError: no task, scale or document in common; a task scored by another metric, or
            another way round.
    """
    tasks = [task for task in new_run.tasks if task in old_run.tasks]
    scales = [scale for scale in new_run.scales if scale in old_run.scales]
    if not tasks or not scales:
        raise ValueError(
            f"{new_run.run} and {old_run.run} have nothing to compare: tasks "
            f"{', '.join(new_run.tasks)} at {list(new_run.scales)} against "
            f"{', '.join(old_run.tasks)} at {list(old_run.scales)}"
        )
    for task in tasks:
        _check_alike(new_run, old_run, task)
    averaged_tasks = [task for task in new_run.averaged if task in tasks]
    all_changes: list[Change] = []
    for task_group in ([None], tasks if len(tasks) > 1 or not averaged_tasks else []):
        group_changes = []
        for own_model, other_model in _partners(new_run, old_run):
            for scale in scales:
                compared_sides = Side(new_run, own_model, scale), Side(old_run, other_model, scale)
                group_changes += [
                    change
                    for task in task_group
                    if (change := _change(*compared_sides, task, averaged_tasks)) is not None
                ]
        adjusted_p = holm([change.p for change in group_changes])
        all_changes += [
            replace(change, p_holm=p) for change, p in zip(group_changes, adjusted_p, strict=True)
        ]
    if not all_changes:
        raise ValueError(
            f"{new_run.run} and {old_run.run}: no model has scores by document in both"
        )
    return all_changes


def _partners(new_run: Summary, old_run: Summary) -> list[tuple[str, str]]:
    """Models of `new`, each with whom it is compared."""
    new_names, old_names = (
        [model.name for model in new_run.models],
        {model.name for model in old_run.models},
    )
    equal_names = [(model_name, model_name) for model_name in new_names if model_name in old_names]
    is_alone = len(new_run.models) == len(old_run.models) == 1
    return [(new_names[0], old_run.models[0].name)] if is_alone or not equal_names else equal_names


def _change(
    new_side: Side, old_side: Side, task: str | None, averaged_tasks: Sequence[str]
) -> Change | None:
    """Change of a task, or of the mean over comparable tasks; None where there are none."""
    compared_tasks = [task] if task else averaged_tasks
    tasks = comparable(new_side, old_side, compared_tasks)
    if not tasks:
        return None
    score_pairs, is_higher = (
        _pairs(new_side, old_side, tasks),
        new_side.summary.kind(task).higher_is_better,
    )
    left_out, score_difference = (
        tuple(left_task for left_task in compared_tasks if left_task not in tasks),
        mean_difference(score_pairs),
    )
    return Change(
        new_side.model,
        old_side.model,
        task,
        new_side.scale,
        score_difference,
        score_difference.p,
        score_difference.p,
        is_higher,
        tasks,
        left_out,
    )


def not_compared(new_run: Summary, old_run: Summary) -> list[str]:
    """Tasks, scales, models and single cells of the new run that have no counterpart, in words."""
    model_pairs, scales = (
        _partners(new_run, old_run),
        [scale for scale in new_run.scales if scale in old_run.scales],
    )
    own_models, other_models = (
        {own_model for own_model, _ in model_pairs},
        {other_model for _, other_model in model_pairs},
    )
    left_out = [
        f"the model {model.name}" for model in new_run.models if model.name not in own_models
    ]
    left_out += [
        f"the older run's model {model.name}"
        for model in old_run.models
        if model.name not in other_models
    ]
    left_out += [
        f"{scale} tokens" for scale in (*new_run.scales, *old_run.scales) if scale not in scales
    ]
    for task in dict.fromkeys((*new_run.tasks, *old_run.tasks)):
        if task not in new_run.tasks or task not in old_run.tasks:
            left_out.append(f"{task} (in one of the runs alone)")
            continue
        for own_model, other_model in model_pairs:
            absent_scales = [
                s
                for s in scales
                if not comparable(
                    Side(new_run, own_model, s), Side(old_run, other_model, s), [task]
                )
            ]
            scale_note = (
                ""
                if absent_scales == scales
                else f" at {', '.join(map(str, absent_scales))} tokens"
            )
            left_out += (
                [f"{task} of {own_model}{scale_note} (failed, or without scores by document)"]
                if absent_scales
                else []
            )
    return left_out


def _check_alike(new_run: Summary, old_run: Summary, task: str) -> None:
    own_metric, other_metric = new_run.metric(task), old_run.metric(task)
    if own_metric is None or other_metric is None:
        return  # it failed there, and no number of it is compared
    if (
        own_metric != other_metric
        or new_run.kinds[task].higher_is_better != old_run.kinds[task].higher_is_better
    ):
        sides = [
            f"{side.run} has {side.metric(task)} "
            f"({'more' if side.kinds[task].higher_is_better else 'less'} is better)"
            for side in (new_run, old_run)
        ]
        raise ValueError(
            f"{task} cannot be compared: {', '.join(sides)}. Run both sweeps with one "
            "version of the task"
        )


def change_text(change: Change) -> str:
    """One line; what went for the worse in capitals."""
    score_difference = change.difference
    direction_word = "fell" if score_difference.value < 0 else "rose"
    direction_word = direction_word.upper() if change.is_drop else direction_word
    direction_word += "" if change.higher_is_better else f" ({LESS})"
    direction_word = direction_word if change.is_significant else "within the noise"
    interval_text = (
        ""
        if math.isnan(score_difference.low)
        else f" [{score_difference.low:+.1f}, {score_difference.high:+.1f}]"
    )
    return (
        f"{change.model} at {change.scale} tokens, {change.task or tasks_text(change)}: "
        f"{direction_word}, {score_difference.value:+.1f}{interval_text}, p "
        f"{shown_p(change.p_holm)} after Holm, {score_difference.n} documents"
    )


def tasks_text(change: Change) -> str:
    """Names of the tasks that the mean of a change is over."""
    task_count = len(change.tasks)
    return (
        f"mean of {task_count} of {task_count + len(change.left_out)} tasks"
        if change.left_out
        else "mean of the tasks"
    )


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
