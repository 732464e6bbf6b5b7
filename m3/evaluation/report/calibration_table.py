"""The table of calibration: how far confidence and accuracy are apart, by scale and task.

In: a `Summary`. Out: a `Table`.
"""

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.table_formats import Table


def calibration_table(summary: Summary) -> Table:
    """Expected calibration error in points per scale, task and in the mean, and the mean
    confidence; no rows without any.
    """
    tasks = [
        task
        for task in summary.tasks
        if any(
            summary.calibration(model.name, task, scale)
            for model in summary.models
            for scale in summary.scales
        )
    ]
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models if tasks else ():
        block_titles[len(table_rows)] = model.name
        for scale in summary.scales:
            calibrations = [summary.calibration(model.name, task, scale) for task in tasks]
            calibration_errors = [None if one is None else 100 * one.error for one in calibrations]
            mean_confidences = [
                None if one is None else 100 * one.confidence for one in calibrations
            ]
            table_rows.append(
                [
                    str(scale),
                    *(_points_text(points) for points in calibration_errors),
                    _mean(calibration_errors),
                    _mean(mean_confidences),
                ]
            )
    column_names = ["tokens", *(summary.family(task) for task in tasks), "mean", "confidence"]
    caption = "Expected calibration error of generated answers by visual tokens per image, in points; 0 is best"
    note = (
        "Confidence: geometric mean of the probabilities of an answer's tokens, here the mean over "
        "answers and tasks. Error: "
        "mean distance between confidence and score in ten bins of equally many answers; few "
        "documents alone raise it."
    )
    return Table("calibration", caption, column_names, table_rows, block_titles, note)


def _points_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _mean(values: list[float | None]) -> str:
    """Unweighted; nothing where a task has none, so that rows compare."""
    known_values = [value for value in values if value is not None]
    return (
        _points_text(sum(known_values) / len(known_values))
        if len(known_values) == len(values)
        else _points_text(None)
    )
