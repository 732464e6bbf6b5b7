"""One tidy table of a run, for notebooks and for everything that a report writes.

In: a run folder. Out: a pandas DataFrame with a row per model, method, task and budget.
"""

import math
from pathlib import Path
from typing import Any

import pandas

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.axes import COST_AXES
from m3.evaluation.results.run_folder import CellRow, ModelRow
from m3.processing.scale_policy import is_budget

MEAN = "mean"
"""The task of rows that hold the mean over the tasks."""


def load_run(run: str | Path) -> pandas.DataFrame:
    """The table of a run that `m3 sweep --out` wrote, failed cells included.

    Columns: model, method, task ("mean": over the tasks), scale (the budget as it is written: 36,
    "36@48", or a choice such as "auto"), tokens (visual tokens per tile) and resolution (in pixels),
    both empty of choices, is_trained, status,
    metric, score and stderr (in percent, or points where `unit` says so), unit, higher_is_better,
    samples, error, and a column for each axis of cost (m3/evaluation/cost/axes.py).

    Raises:
        ValueError: no run folder, or one without any score.
    """
    return run_table(Summary.read(Path(run)))


def run_table(summary: Summary) -> pandas.DataFrame:
    """The table of a run that is read already."""
    models = {model.name: model for model in summary.models}
    table_rows = [
        _cell_row(summary, models[cell.model], cell) for cell in summary.cells if cell.is_primary
    ]
    if len(summary.tasks) > 1 and summary.averaged:
        table_rows += [
            _mean_row(summary, model, scale)
            for model in summary.models
            for scale in [*summary.scales, *summary.choices_of(model.name)]
        ]
    return pandas.DataFrame(table_rows)


def _cell_row(summary: Summary, model: ModelRow, cell: CellRow) -> dict[str, Any]:
    score = summary.score(model.name, cell.task, cell.scale)
    unit = summary.metric_units[cell.task]
    return {
        **_row_start(model, cell.task, cell.scale),
        "status": cell.status,
        "metric": cell.metric,
        "score": math.nan if score is None else score.value,
        "stderr": math.nan if score is None else score.stderr,
        "unit": "points" if unit == "points" else "percent",
        "higher_is_better": summary.kinds[cell.task].higher_is_better,
        "samples": cell.n,
        "error": cell.error,
        **cost_columns(summary, model.name, cell.scale, cell.task),
    }


def _mean_row(summary: Summary, model: ModelRow, scale: int | str) -> dict[str, Any]:
    mean = summary.mean(model.name, scale)
    kind = summary.kind(None)
    return {
        **_row_start(model, MEAN, scale),
        "status": "failed" if mean is None else "ok",
        "metric": MEAN,
        "score": math.nan if mean is None else mean.value,
        "stderr": math.nan if mean is None else mean.stderr,
        "unit": "percent" if kind.is_share else "points",
        "higher_is_better": kind.higher_is_better,
        "samples": 0 if mean is None else mean.n,
        "error": "",
        **cost_columns(summary, model.name, scale),
    }


def _row_start(model: ModelRow, task: str, scale: int | str) -> dict[str, Any]:
    is_trained = model.is_trained(scale)
    start = {"model": model.name, "method": model.method, "task": task, "scale": scale}
    if not is_budget(scale):
        return {**start, "tokens": None, "resolution": None, "is_trained": is_trained}
    budget = model.budget(scale)
    side = model.largest_resolution if budget.resolution is None else budget.resolution
    return {**start, "tokens": budget.tokens, "resolution": side, "is_trained": is_trained}


def cost_columns(
    summary: Summary, model: str, scale: int | str, task: str | None = None
) -> dict[str, float]:
    """Axis -> number for the prompts of a task, or for all; NaN where it is not known."""
    cost = summary.cost(model, scale, task if summary.task_costs else None)
    latency = summary.latency(model, scale)
    axis_values = {
        key: None if cost is None else axis.value(cost, latency) for key, axis in COST_AXES.items()
    }
    return {key: math.nan if value is None else value for key, value in axis_values.items()}
