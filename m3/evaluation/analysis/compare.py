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
    scale: int


@dataclass(frozen=True)
class Change:
    """From the second run (the older) to the first, in the unit of the table."""

    model: str
    other: str
    task: str | None  # None: the mean over the tasks
    scale: int
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
    pairs = []
    for task in tasks:
        mine, theirs = a.summary.samples[a.model, task], b.summary.samples[b.model, task]
        rows = {
            key: row for row, key in enumerate(zip(theirs.doc_ids, theirs.documents, strict=True))
        }
        common = [
            (row, rows[key])
            for row, key in enumerate(zip(mine.doc_ids, mine.documents, strict=True))
            if key in rows
        ]
        if not common:
            raise ValueError(
                f"{a.summary.run} and {b.summary.run} have no document of {task} in common: they "
                "were run on other data"
            )
        left, right = (
            side.summary.units[task] * of.at(side.scale) for side, of in ((a, mine), (b, theirs))
        )
        own, other = (list(column) for column in zip(*common, strict=True))
        pairs.append(
            TaskPairs(left[own].tolist(), right[other].tolist(), [mine.images[row] for row in own])
        )
    return pairs


def compare(new: Summary, old: Summary) -> list[Change]:
    """Every model of `new` against its namesake of `old` (or, where none has one, the first against
    the first).

    The means over the common tasks at each common scale, then each task, each kind corrected by
    Holm.

    Raises:
        ValueError: no task, scale or document in common; a task scored by another metric, or
            another way round.
    """
    tasks = [task for task in new.tasks if task in old.tasks]
    scales = [scale for scale in new.scales if scale in old.scales]
    if not tasks or not scales:
        raise ValueError(
            f"{new.run} and {old.run} have nothing to compare: tasks {', '.join(new.tasks)} at "
            f"{list(new.scales)} against "
            f"{', '.join(old.tasks)} at {list(old.scales)}"
        )
    for task in tasks:
        _check_alike(new, old, task)
    averaged = [task for task in new.averaged if task in tasks]
    changes: list[Change] = []
    for kind in ([None], tasks if len(tasks) > 1 or not averaged else []):
        found = []
        for mine, theirs in _partners(new, old):
            for scale in scales:
                sides = Side(new, mine, scale), Side(old, theirs, scale)
                found += [
                    change
                    for task in kind
                    if (change := _change(*sides, task, averaged)) is not None
                ]
        adjusted = holm([change.p for change in found])
        changes += [replace(change, p_holm=p) for change, p in zip(found, adjusted, strict=True)]
    if not changes:
        raise ValueError(f"{new.run} and {old.run}: no model has scores by document in both")
    return changes


def _partners(new: Summary, old: Summary) -> list[tuple[str, str]]:
    """Models of `new`, each with whom it is compared."""
    names, known = [model.name for model in new.models], {model.name for model in old.models}
    namesakes = [(name, name) for name in names if name in known]
    is_alone = len(new.models) == len(old.models) == 1
    return [(names[0], old.models[0].name)] if is_alone or not namesakes else namesakes


def _change(new: Side, old: Side, task: str | None, averaged: Sequence[str]) -> Change | None:
    """Of a task, or of the mean over what can be compared; None where nothing can."""
    asked = [task] if task else averaged
    tasks = comparable(new, old, asked)
    if not tasks:
        return None
    pairs, is_higher = _pairs(new, old, tasks), new.summary.kind(task).higher_is_better
    left_out, found = tuple(one for one in asked if one not in tasks), mean_difference(pairs)
    return Change(
        new.model, old.model, task, new.scale, found, found.p, found.p, is_higher, tasks, left_out
    )


def not_compared(new: Summary, old: Summary) -> list[str]:
    """What of the new run has nothing to stand against, in words: tasks, scales, models, single
    cells.
    """
    partners, scales = _partners(new, old), [scale for scale in new.scales if scale in old.scales]
    left, right = {mine for mine, _ in partners}, {theirs for _, theirs in partners}
    found = [f"the model {model.name}" for model in new.models if model.name not in left]
    found += [
        f"the older run's model {model.name}" for model in old.models if model.name not in right
    ]
    found += [f"{scale} tokens" for scale in (*new.scales, *old.scales) if scale not in scales]
    for task in dict.fromkeys((*new.tasks, *old.tasks)):
        if task not in new.tasks or task not in old.tasks:
            found.append(f"{task} (in one of the runs alone)")
            continue
        for mine, theirs in partners:
            absent = [
                s
                for s in scales
                if not comparable(Side(new, mine, s), Side(old, theirs, s), [task])
            ]
            where = "" if absent == scales else f" at {', '.join(map(str, absent))} tokens"
            found += (
                [f"{task} of {mine}{where} (failed, or without scores by document)"]
                if absent
                else []
            )
    return found


def _check_alike(new: Summary, old: Summary, task: str) -> None:
    mine, theirs = new.metric(task), old.metric(task)
    if mine is None or theirs is None:
        return  # it failed there, and no number of it is compared
    if mine != theirs or new.kinds[task].higher_is_better != old.kinds[task].higher_is_better:
        sides = [
            f"{side.run} has {side.metric(task)} "
            f"({'more' if side.kinds[task].higher_is_better else 'less'} is better)"
            for side in (new, old)
        ]
        raise ValueError(
            f"{task} cannot be compared: {', '.join(sides)}. Run both sweeps with one "
            "version of the task"
        )


def described(change: Change) -> str:
    """One line; what went for the worse in capitals."""
    found = change.difference
    said = "fell" if found.value < 0 else "rose"
    said = said.upper() if change.is_drop else said
    said += "" if change.higher_is_better else f" ({LESS})"
    said = said if change.is_significant else "within the noise"
    interval = "" if math.isnan(found.low) else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return (
        f"{change.model} at {change.scale} tokens, {change.task or over(change)}: {said}, "
        f"{found.value:+.1f}{interval}, "
        f"p {shown_p(change.p_holm)} after Holm, {found.n} documents"
    )


def over(change: Change) -> str:
    """What the mean of a change is over."""
    number = len(change.tasks)
    return (
        f"mean of {number} of {number + len(change.left_out)} tasks"
        if change.left_out
        else "mean of the tasks"
    )


def shown_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
