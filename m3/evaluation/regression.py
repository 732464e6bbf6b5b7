"""`m3 sweep --baseline RUN`: did accuracy fall, at any scale, by more than chance explains? For continuous integration.

In: two run folders with documents in common. Out: one `Change` per model, scale and method, over all tasks that both have. The
documents are paired and images are drawn with replacement (statistics.paired_bootstrap); every task weighs the same. Before
"fell" is said of one of several scales, the p-values are corrected for their number (Holm 1979): with five scales and nothing
changed, a drop is reported in at most one run of twenty.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3.evaluation.run_folder import CellRow, read_keys, read_rows
from m3.evaluation.statistics import Difference, paired_bootstrap
from m3.evaluation.store import Store

logger = logging.getLogger(__name__)

LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """Mean score now minus then, in the metrics' own units, at one scale."""

    model: str
    baseline_model: str
    scale: int
    tasks: tuple[str, ...]
    documents: int
    difference: Difference
    is_drop: bool  # beyond the noise, after correction for the number of comparisons

    def __str__(self) -> str:
        d = self.difference
        said = "FELL" if self.is_drop else "within the noise" if d.low <= 0 <= d.high else "changed"
        return (
            f"{self.model} at {self.scale} tokens: {said}, {d.value:+.4f} (95 % {d.low:+.4f} to {d.high:+.4f}) over "
            f"{self.documents} documents of {len(self.tasks)} tasks"
        )


def changes(run: Path, baseline: Path) -> list[Change]:
    """Every model of `run` against the one of `baseline` with its name, or, where both have one model, against that.

    Raises:
        ValueError: nothing to compare, or another number of documents: the limit or the data differ.
    """
    now, then = _cells(run), _cells(baseline)
    partner = _partners(_models(run), _models(baseline))
    found: list[Change] = []
    with Store(run / "store") as mine, Store(baseline / "store") as theirs:
        for model, other in partner.items():
            for scale in sorted({key[2] for key in now if key[0] == model}):
                tasks = [t for m, t, s in now if (m, s) == (model, scale) and (other, t, scale) in then]
                tasks = [task for task in tasks if _is_paired(mine, run, now[model, task, scale])]
                if not tasks:
                    continue
                a: list[float] = []
                b: list[float] = []
                clusters: list[tuple[str, ...]] = []
                total = 0
                for task in tasks:
                    metric = now[model, task, scale].metric
                    left, right = read_keys(run, model, task, scale), read_keys(baseline, other, task, scale)
                    if set(left) != set(right):
                        raise ValueError(
                            f"{task} at {scale} tokens has {len(left)} documents in {run} and {len(right)} in {baseline}; "
                            "compare runs with the same --limit and data"
                        )
                    total += len(left)
                    for doc_id in sorted(left):
                        a.append(mine.scores(left[doc_id])[metric] / len(left))
                        b.append(theirs.scores(right[doc_id])[metric] / len(left))
                        clusters.append(mine.answer(left[doc_id]).images)
                weight = len(a) / len(tasks)
                difference = paired_bootstrap([x * weight for x in a], [x * weight for x in b], clusters)
                found.append(Change(model, other, scale, tuple(tasks), total, difference, False))
    if not found:
        raise ValueError(f"{run} and {baseline} have no scored cell in common: the same tasks and scales are needed")
    return _corrected(found)


def _corrected(found: Sequence[Change]) -> list[Change]:
    """Holm: the k-th smallest p-value must be below LEVEL / (number of tests left)."""
    drops = set()
    for rank, change in enumerate(sorted(found, key=lambda change: change.difference.p)):
        if change.difference.p > LEVEL / (len(found) - rank):
            break
        if change.difference.value < 0:
            drops.add((change.model, change.scale))
    return [
        Change(c.model, c.baseline_model, c.scale, c.tasks, c.documents, c.difference, (c.model, c.scale) in drops)
        for c in found
    ]


def _cells(run: Path) -> dict[tuple[str, str, int], CellRow]:
    """Scored cells whose metric is a mean over documents' scores."""
    rows = read_rows(run / "cells.csv", CellRow)
    return {(row.model, row.task, row.scale): row for row in rows if row.is_primary and row.status == "ok"}


def _models(run: Path) -> list[str]:
    return [row["name"] for row in json.loads((run / "models.json").read_text(encoding="utf-8"))]


def _partners(now: Sequence[str], then: Sequence[str]) -> dict[str, str]:
    if len(now) == len(then) == 1:
        return {now[0]: then[0]}
    return {name: name for name in now if name in then}


def _is_paired(store: Store, run: Path, cell: CellRow) -> bool:
    """Whether the task's metric has a score per document; one that is computed over all of them has none."""
    keys = read_keys(run, cell.model, cell.task, cell.scale)
    is_paired = all(cell.metric in store.scores(key) for key in keys.values())
    if not is_paired:
        logger.warning("%s is left out: %s has no score per document, so runs cannot be paired", cell.task, cell.metric)
    return is_paired
