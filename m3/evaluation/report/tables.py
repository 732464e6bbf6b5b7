"""The tables of a report, from a `Summary`: scores, retention, oracle, calibration, differences,
published, cost, latency.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas

from m3.evaluation.analysis.compare import Change, Side, comparable, difference, over, shown_p
from m3.evaluation.analysis.frontier import knee, pareto_front, sufficient
from m3.evaluation.analysis.metric_kind import ARROW, LESS
from m3.evaluation.analysis.oracle import Oracle
from m3.evaluation.analysis.run_table import cost_columns
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.calibration_table import calibration_table
from m3.evaluation.report.cost_tables import cost_table, latency_table
from m3.evaluation.report.expert_load import routing_table
from m3.evaluation.report.table_formats import NOTHING, Table
from m3.evaluation.results.run_folder import ModelRow, write_text
from m3.evaluation.statistics import DRAWS, Difference, Interval, Mean
from m3.evaluation.token_reduction.table import OWN, get_method


def report_tables(summary: Summary, device: str, changes: Sequence[Change] = ()) -> list[Table]:
    """Every table that the run has numbers for."""
    tables = [
        scores_table(summary),
        kept_table(summary),
        oracle_table(summary),
        calibration_table(summary),
    ]
    tables += [differences_table(summary)]
    tables += [changes_table(changes)] if changes else []
    tables += [
        published_table(summary),
        routing_table(summary),
        cost_table(summary),
        latency_table(summary, device),
    ]
    return [table for table in tables if table.rows]


def scores_table(summary: Summary) -> Table:
    """Scale x task in per cent with standard errors, a block per model, then the blind
    baselines.
    """
    names = [summary.label(task) for task in summary.tasks]
    has_mean = len(names) > 1 and bool(summary.averaged)
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        blocks[len(rows)] = f"{model.name}: {described(model)}"
        for scale in summary.scales:
            scores = [summary.score(model.name, task, scale) for task in summary.tasks]
            scores += [summary.mean(model.name, scale)] if has_mean else []
            rows.append(
                [
                    f"{scale}{'' if model.is_trained(scale) else '*'}",
                    *(shown(score) for score in scores),
                ]
            )
    blind = []
    for name in ("chance", "majority"):
        values = [summary.baseline(name, task) for task in summary.tasks]
        values += [summary.baseline(name)] if has_mean else []
        if any(value is not None for value in values):
            blind.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    if blind:
        blocks[len(rows)] = "without looking"
    caption = "Scores by visual tokens per image, in per cent, with one standard error, clustered by image"
    note = " ".join(
        filter(
            None,
            ["The mean weighs every task the same." if has_mean else "", summary.direction_note],
        )
    )
    return Table(
        "scores",
        caption,
        ["tokens", *names, *(["mean"] if has_mean else [])],
        rows + blind,
        blocks,
        note,
    )


def kept_table(summary: Summary) -> Table:
    """Share of the largest scale's score, and what stands out on each curve."""
    points = [
        (model.name, scale, cost.visual_tokens, mean.value)
        for model in summary.models
        for scale, mean in summary.curve(model.name).items()
        if (cost := summary.cost(model.name, scale)) is not None
    ]
    kind = summary.kind(None)
    sign = 1.0 if kind.higher_is_better else -1.0
    front = {
        points[i][:2]
        for i in pareto_front([(float(tokens), sign * value) for _, _, tokens, value in points])
    }
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        curve = {scale: mean.value for scale, mean in summary.curve(model.name).items()}
        if len(curve) < 2:
            continue
        blocks[len(rows)] = model.name
        # a share of errors e keeps what 100 - e keeps; of an error in points there is no share to
        # keep
        good = {
            scale: sign * value + (0.0 if sign > 0 else 100.0) for scale, value in curve.items()
        }
        enough = sufficient(good) if kind.higher_is_better or kind.is_share else None
        for scale, value in curve.items():
            kept = summary.retention(model.name, scale)
            notes = ["on the Pareto front"] if (model.name, scale) in front else []
            notes += ["knee"] if scale == knee(good) else []
            notes += (
                ["smallest that keeps 95 %"]
                if scale == enough and summary.scales[-1] in curve
                else []
            )
            rows.append([str(scale), f"{value:.1f}", _shown_kept(kept), "; ".join(notes)])
    caption = (
        "What each scale keeps of the largest: mean over tasks of the ratio of scores, in per cent"
    )
    note = (
        f"95 % interval by bootstrap over images, {DRAWS:,} draws. Pareto front over all rows, by "
        "visual tokens and mean score; "
        "knee: farthest above the line between the curve's ends, tokens on a logarithmic axis."
    )
    if not kind.higher_is_better:
        note += f" The score counts errors ({LESS}): front and knee are of the falling curve, kept is the share of 100 - error."
    return Table("retention", caption, ["tokens", "mean score", "kept", ""], rows, blocks, note)


def _shown_kept(kept: Interval | None) -> str:
    if kept is None:
        return NOTHING
    if math.isnan(kept.low):
        return f"{kept.value:.1f}"
    high = "∞" if math.isinf(kept.high) else f"{kept.high:.1f}"
    return f"{kept.value:.1f} [{kept.low:.1f}, {high}]"


def oracle_table(summary: Summary) -> Table:
    """A row per task and their mean, a block per model."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        found = {task: summary.oracle(model.name, task) for task in summary.tasks}
        known = {task: one for task, one in found.items() if one is not None}
        if not known:
            continue
        blocks[len(rows)] = model.name
        factors = {task: summary.units.get(task, summary.percent(task)) for task in known}
        rows += [
            _oracle_row(_accuracy_name(summary, task), [one], factors[task])
            for task, one in known.items()
        ]
        if len(known) > 1 and all(factor == 100 for factor in factors.values()):
            rows.append(_oracle_row("mean", list(known.values()), 100.0))
    header = [
        "task",
        "samples",
        "largest",
        "tokens",
        "oracle",
        "tokens",
        "tokens as M3",
        "steady tokens",
    ]
    header += ["largest, corrected", "oracle, corrected", "never right"]
    caption = "The oracle: the smallest scale that answers right, chosen sample by sample"
    note = (
        "Samples never right count at the largest scale; 'as M3': at the smallest, as published. "
        "Steady: the smallest scale "
        "from which on all larger are right too, with the accuracy of the largest. Corrected for "
        "chance, 0 is guessing: "
        "(score - c) / (1 - c), where c is the chance level, and 1 - (1 - chance)^scales for the "
        "oracle's many tries."
    )
    failed = sorted({summary.label(cell.task) for cell in summary.cells if cell.status == "failed"})
    if failed:
        note += f" A model's task with a failed scale has no row ({', '.join(failed)})."
    return Table("oracle", caption, header, rows, blocks, note)


def _accuracy_name(summary: Summary, task: str) -> str:
    return summary.family(task) + ("" if summary.kinds[task].higher_is_better else " (1 - error)")


def _oracle_row(name: str, parts: Sequence[Oracle], factor: float) -> list[str]:
    def mean(values: Sequence[float | None], scale: float) -> str:
        known = [value for value in values if value is not None]
        return f"{scale * sum(known) / len(known):.1f}" if len(known) == len(values) else NOTHING

    return [
        name,
        str(sum(part.n for part in parts)),
        mean([part.largest_score for part in parts], factor),
        mean([part.largest_tokens for part in parts], 1.0),
        mean([part.score for part in parts], factor),
        mean([part.tokens for part in parts], 1.0),
        mean([part.tokens_as_published for part in parts], 1.0),
        mean([part.steady_tokens for part in parts], 1.0),
        mean([part.largest_corrected for part in parts], 100.0),
        mean([part.corrected for part in parts], 100.0),
        mean([part.never / part.n for part in parts], 100.0) + " %",
    ]


def differences_table(summary: Summary) -> Table:
    """The first model against the others at each scale, and each of its scales against its largest.

    Over the tasks that both have scores by document of; `tasks` says how many of the mean's these
    are.
    """
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    missing: set[str] = set()
    first, largest = summary.models[0], summary.scales[-1]
    pairs = [
        (f"{first.name} minus {other.name}", other, [(scale, scale) for scale in summary.scales])
        for other in summary.models[1:]
    ]
    pairs.append(
        (
            f"{first.name}: each scale minus {largest} tokens",
            first,
            [(s, largest) for s in summary.scales[:-1]],
        )
    )
    for title, other, scales in pairs:
        blocks[len(rows)] = title
        for mine, theirs in scales:
            sides = Side(summary, first.name, mine), Side(summary, other.name, theirs)
            tasks, found = comparable(*sides, summary.averaged), difference(*sides)
            missing |= set(summary.averaged) - set(tasks)
            name = f"{mine}{'' if other.is_trained(mine) else '*'}"
            shown_numbers = [NOTHING] * 3 if found is None else _shown_difference(found)
            rows.append([name, *shown_numbers, f"{len(tasks)} of {len(summary.averaged)}"])
    note = f"Points; paired bootstrap over images, {DRAWS:,} draws; p not corrected for the number of rows."
    if missing:
        names = ", ".join(summary.label(task) for task in summary.averaged if task in missing)
        note += (
            f" {names}: no scores by document in the table's unit in some rows or all; these are "
            "over the other tasks."
        )
    if not summary.kind(None).higher_is_better:
        note += f" The score counts errors ({LESS}): below zero the first is better."
    caption, header = (
        "Differences of the mean score on the same documents",
        ["tokens", "difference", "95 % interval", "p", "tasks"],
    )
    return Table("differences", caption, header, rows if summary.averaged else [], blocks, note)


def _shown_difference(found: Difference) -> list[str]:
    interval = NOTHING if math.isnan(found.low) else f"{found.low:+.1f} to {found.high:+.1f}"
    return [f"{found.value:+.1f}", interval, shown_p(found.p)]


def changes_table(changes: Sequence[Change]) -> Table:
    """Two runs side by side."""
    rows = [
        [
            change.model if change.model == change.other else f"{change.model} − {change.other}",
            (change.task or over(change)) + ("" if change.higher_is_better else ARROW),
            str(change.scale),
            *_shown_difference(change.difference)[:2],
            shown_p(change.p),
            shown_p(change.p_holm),
            ("better" if change.is_for_better else "worse") if change.is_significant else "",
        ]
        for change in changes
    ]
    header = ["model", "task", "tokens", "change", "95 % interval", "p", "p after Holm", ""]
    note = (
        f"{ARROW.strip()}: {LESS}. "
        if not all(change.higher_is_better for change in changes)
        else ""
    )
    note += "Paired by document, images drawn with all their documents; Holm's correction among means, and among single tasks."
    return Table(
        "comparison", "This run minus the other, on the same documents", header, rows, note=note
    )


def published_table(summary: Summary) -> Table:
    """What papers report for the run's tasks, a row per task and number of tokens, ours in
    front.
    """
    known = {
        task: found
        for task in (*summary.tasks, *summary.submitted)
        if (found := summary.published(task))
    }
    theirs = list(dict.fromkeys(score.label for found in known.values() for score in found))
    ours = [model.name for model in summary.models]
    rows = []
    for task, found in known.items():
        tokens = sorted(
            {score.tokens for score in found if score.tokens is not None} | set(summary.scales)
        )
        for scale in tokens:
            mine = [summary.score(name, task, scale) for name in ours]
            values = [
                [s.value for s in found if s.label == name and s.tokens == scale] for name in theirs
            ]
            shown_theirs = [" / ".join(f"{value:.1f}" for value in of_model) for of_model in values]
            shown_mine = ["" if score is None else shown(score) for score in mine]
            name = summary.label(task) if task in summary.tasks else f"{task} (at its server)"
            rows.append([f"{name}, {scale}", *shown_mine, *shown_theirs])
    papers = dict.fromkeys(
        f"{s.label}: {s.paper}, {s.table}" for found in known.values() for s in found
    )
    note = (
        "Papers count tokens per image, per tile of an image (LLaVA-NeXT) or per video. "
        + "; ".join(papers)
    )
    return Table(
        "published",
        "Published scores beside ours",
        ["task, tokens", *ours, *theirs],
        rows,
        note=note,
    )


def shown(score: Mean | None) -> str:
    """A score as 93.2±1.4."""
    if score is None:
        return "failed"
    return (
        f"{score.value:.1f}"
        if math.isnan(score.stderr)
        else f"{score.value:.1f}±{score.stderr:.1f}"
    )


def described(model: ModelRow) -> str:
    if model.method != OWN:
        return f"{get_method(model.method).about}, a control without training"
    scales = ", ".join(str(scale) for scale in model.trained_scales)
    return (
        f"trained at {scales} visual tokens; * marks scales it was not trained at (plain pooling)"
    )


def write_csv(summary: Summary) -> Path:
    """summary.csv: a row per model and scale, with every axis of cost, every task, the mean, and
    how far it is behind the first model (above zero: the first is better).
    """
    rows = [_csv_row(summary, model, scale) for model in summary.models for scale in summary.scales]
    path = summary.run / "summary.csv"
    write_text(path, pandas.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    return path


def _csv_row(summary: Summary, model: ModelRow, scale: int) -> dict[str, object]:
    row: dict[str, object] = {"model": model.name, "scale": scale}
    row["trained_at_scale"] = model.is_trained(scale)
    row |= cost_columns(summary, model.name, scale)
    for task in summary.tasks:
        score = summary.score(model.name, task, scale)
        row[summary.family(task)] = None if score is None else score.value
        row[f"{summary.family(task)}_stderr"] = None if score is None else score.stderr
    mean = summary.mean(model.name, scale)
    row["mean"], row["mean_stderr"] = (None, None) if mean is None else (mean.value, mean.stderr)
    sides = Side(summary, summary.models[0].name, scale), Side(summary, model.name, scale)
    behind = None if model == summary.models[0] else difference(*sides)
    low, value, high = (
        (None, None, None) if behind is None else (behind.low, behind.value, behind.high)
    )
    if behind is not None and not summary.kind(None).higher_is_better:
        low, value, high = -behind.high, -behind.value, -behind.low
    row |= {"behind_first": value, "behind_first_low": low, "behind_first_high": high}
    tasks = None if behind is None else len(comparable(*sides, summary.averaged))
    return row | {"behind_first_tasks": tasks}
