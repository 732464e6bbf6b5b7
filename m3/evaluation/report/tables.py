"""The tables of a report, from a `Summary`: scores, retention, oracle, calibration, differences,
published, cost, latency.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas

from m3.evaluation.analysis.compare import Change, Side, comparable, difference, shown_p, tasks_text
from m3.evaluation.analysis.frontier import front_curve, knee, pareto_front
from m3.evaluation.analysis.metric_kind import ARROW, LESS
from m3.evaluation.analysis.oracle import Oracle
from m3.evaluation.analysis.run_table import cost_columns
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.calibration_table import calibration_table
from m3.evaluation.report.choice_report import choice_table, chosen_table
from m3.evaluation.report.cost_tables import cost_table, latency_table
from m3.evaluation.report.expert_load import routing_table
from m3.evaluation.report.finding import good_scores, plane_costs, sufficient_budget
from m3.evaluation.report.table_formats import NOTHING, Table
from m3.evaluation.results.run_folder import ModelRow
from m3.evaluation.statistics import DRAWS, Difference, Interval, Mean
from m3.evaluation.token_reduction.methods import OWN, get_method
from m3.files import write_text
from m3.nesting import read_budget


def report_tables(summary: Summary, device: str, changes: Sequence[Change] = ()) -> list[Table]:
    """Every table that the run has numbers for."""
    all_tables = [
        scores_table(summary),
        choice_table(summary),
        chosen_table(summary),
        kept_table(summary),
        oracle_table(summary),
        calibration_table(summary),
    ]
    all_tables += [differences_table(summary)]
    all_tables += [changes_table(changes)] if changes else []
    all_tables += [
        published_table(summary),
        routing_table(summary),
        cost_table(summary),
        latency_table(summary, device),
    ]
    return [table for table in all_tables if table.rows]


def scores_table(summary: Summary) -> Table:
    """Scale x task in per cent with standard errors, a block per model, then the blind
    baselines.
    """
    task_labels = [summary.label(task) for task in summary.tasks]
    has_mean = len(task_labels) > 1 and bool(summary.averaged)
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models:
        block_titles[len(table_rows)] = f"{model.name}: {model_description(model)}"
        for scale in [*summary.scales, *summary.choices_of(model.name)]:
            scores = [summary.score(model.name, task, scale) for task in summary.tasks]
            scores += [summary.mean(model.name, scale)] if has_mean else []
            table_rows.append(
                [
                    f"{scale}{'' if model.is_trained(scale) else '*'}",
                    *(score_text(score) for score in scores),
                ]
            )
    blind_rows = []
    for baseline_name in ("chance", "majority"):
        baseline_values = [summary.baseline(baseline_name, task) for task in summary.tasks]
        baseline_values += [summary.baseline(baseline_name)] if has_mean else []
        if any(value is not None for value in baseline_values):
            blind_rows.append(
                [
                    baseline_name,
                    *("" if value is None else f"{value:.1f}" for value in baseline_values),
                ]
            )
    if blind_rows:
        block_titles[len(table_rows)] = "without looking"
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
        ["tokens", *task_labels, *(["mean"] if has_mean else [])],
        table_rows + blind_rows,
        block_titles,
        note,
    )


def kept_table(summary: Summary) -> Table:
    """Share of the largest scale's score, and what stands out on each curve."""
    kind = summary.kind(None)
    front_budgets = front_of_run(summary)
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models:
        curve = {scale: mean.value for scale, mean in summary.curve(model.name).items()}
        if len(curve) < 2:
            continue
        block_titles[len(table_rows)] = model.name
        model_scores = good_scores(summary, model.name)
        costs = plane_costs(summary, model.name)
        bend = knee(model_scores if costs is None else front_curve(model_scores, costs), costs)
        sufficient_scale = sufficient_budget(summary, model.name)
        for scale, value in curve.items():
            kept_share = summary.retention(model.name, scale)
            row_notes = ["on the Pareto front"] if (model.name, scale) in front_budgets else []
            row_notes += ["knee"] if scale == bend else []
            row_notes += (
                ["smallest that keeps 95 %"]
                if scale == sufficient_scale and summary.scales[-1] in curve
                else []
            )
            table_rows.append(
                [str(scale), f"{value:.1f}", _kept_text(kept_share), "; ".join(row_notes)]
            )
    caption = (
        "What each scale keeps of the largest: mean over tasks of the ratio of scores, in per cent"
    )
    note = (
        f"95 % interval by bootstrap over images, {DRAWS:,} draws. Pareto front over all rows, by "
        "computation to the first token and mean score; knee: farthest above the line between the "
        "curve's ends, tokens on a logarithmic axis (of budgets at several resolutions: "
        "computation, along their front)."
    )
    if not kind.higher_is_better:
        note += f" The score counts errors ({LESS}): front and knee are of the falling curve, kept is the share of 100 - error."
    return Table(
        "retention", caption, ["tokens", "mean score", "kept", ""], table_rows, block_titles, note
    )


def front_of_run(summary: Summary) -> set[tuple[str, int | str]]:
    """(model, budget) of the rows that no other beats: by all operations to the first token, so
    over tokens and resolutions alike.
    """
    rows = [
        (model.name, scale, cost.first_token_flops, mean.value)
        for model in summary.models
        for scale, mean in summary.curve(model.name).items()
        if (cost := summary.cost(model.name, scale)) is not None
    ]
    sign = 1.0 if summary.kind(None).higher_is_better else -1.0
    front = pareto_front([(float(flops), sign * value) for _, _, flops, value in rows])
    return {rows[index][:2] for index in front}


def _kept_text(kept_share: Interval | None) -> str:
    if kept_share is None:
        return NOTHING
    if math.isnan(kept_share.low):
        return f"{kept_share.value:.1f}"
    high_text = "∞" if math.isinf(kept_share.high) else f"{kept_share.high:.1f}"
    return f"{kept_share.value:.1f} [{kept_share.low:.1f}, {high_text}]"


def oracle_table(summary: Summary) -> Table:
    """A row per task and their mean, a block per model."""
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models:
        all_oracles = {task: summary.oracle(model.name, task) for task in summary.tasks}
        task_oracles = {
            task: task_oracle
            for task, task_oracle in all_oracles.items()
            if task_oracle is not None
        }
        if not task_oracles:
            continue
        block_titles[len(table_rows)] = model.name
        task_factors = {
            task: summary.units.get(task, summary.percent(task)) for task in task_oracles
        }
        table_rows += [
            _oracle_row(_accuracy_name(summary, task), [task_oracle], task_factors[task])
            for task, task_oracle in task_oracles.items()
        ]
        if len(task_oracles) > 1 and all(
            task_factor == 100 for task_factor in task_factors.values()
        ):
            table_rows.append(_oracle_row("mean", list(task_oracles.values()), 100.0))
    column_names = [
        "task",
        "samples",
        "largest",
        "tokens",
        "oracle",
        "tokens",
        "tokens as M3",
        "steady tokens",
    ]
    column_names += ["largest, corrected", "oracle, corrected", "never right"]
    caption = "The oracle: the smallest scale that answers right, chosen sample by sample"
    note = (
        "Samples never right count at the largest scale; 'as M3': at the smallest, as published. "
        "Steady: the smallest scale "
        "from which on all larger are right too, with the accuracy of the largest. Corrected for "
        "chance, 0 is guessing: "
        "(score - c) / (1 - c), where c is the chance level, and 1 - (1 - chance)^scales for the "
        "oracle's many tries."
    )
    failed_tasks = sorted(
        {summary.label(cell.task) for cell in summary.cells if cell.status == "failed"}
    )
    if failed_tasks:
        note += f" A model's task with a failed scale has no row ({', '.join(failed_tasks)})."
    return Table("oracle", caption, column_names, table_rows, block_titles, note)


def _accuracy_name(summary: Summary, task: str) -> str:
    return summary.family(task) + ("" if summary.kinds[task].higher_is_better else " (1 - error)")


def _oracle_row(row_name: str, task_oracles: Sequence[Oracle], score_factor: float) -> list[str]:
    def mean(values: Sequence[float | None], scale: float) -> str:
        known_values = [value for value in values if value is not None]
        return (
            f"{scale * sum(known_values) / len(known_values):.1f}"
            if len(known_values) == len(values)
            else NOTHING
        )

    return [
        row_name,
        str(sum(task_oracle.n for task_oracle in task_oracles)),
        mean([task_oracle.largest_score for task_oracle in task_oracles], score_factor),
        mean([task_oracle.largest_tokens for task_oracle in task_oracles], 1.0),
        mean([task_oracle.score for task_oracle in task_oracles], score_factor),
        mean([task_oracle.tokens for task_oracle in task_oracles], 1.0),
        mean([task_oracle.tokens_as_published for task_oracle in task_oracles], 1.0),
        mean([task_oracle.steady_tokens for task_oracle in task_oracles], 1.0),
        mean([task_oracle.largest_corrected for task_oracle in task_oracles], 100.0),
        mean([task_oracle.corrected for task_oracle in task_oracles], 100.0),
        mean([task_oracle.never / task_oracle.n for task_oracle in task_oracles], 100.0) + " %",
    ]


def differences_table(summary: Summary) -> Table:
    """The first model against the others at each scale, and each of its scales against its largest.

    Over the tasks that both have scores by document of; `tasks` says how many of the mean's these
    are.
    """
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    missing_tasks: set[str] = set()
    first_model = summary.models[0]
    for block_title, other_model, scales in _compared_pairs(summary):
        block_titles[len(table_rows)] = block_title
        for own_scale, other_scale in scales:
            compared_sides = (
                Side(summary, first_model.name, own_scale),
                Side(summary, other_model.name, other_scale),
            )
            tasks, mean_change = (
                comparable(*compared_sides, summary.averaged),
                difference(*compared_sides),
            )
            missing_tasks |= set(summary.averaged) - set(tasks)
            row_name = f"{own_scale}{'' if other_model.is_trained(own_scale) else '*'}"
            shown_numbers = [NOTHING] * 3 if mean_change is None else _difference_texts(mean_change)
            table_rows.append(
                [row_name, *shown_numbers, f"{len(tasks)} of {len(summary.averaged)}"]
            )
    return Table(
        "differences",
        "Differences of the mean score on the same documents",
        ["tokens", "difference", "95 % interval", "p", "tasks"],
        table_rows if summary.averaged else [],
        block_titles,
        _differences_note(summary, missing_tasks),
    )


def _compared_pairs(
    summary: Summary,
) -> list[tuple[str, ModelRow, list[tuple[int | str, int | str]]]]:
    """Per block: its title, the model that is subtracted, and pairs of scales."""
    first_model, largest_scale = summary.models[0], summary.scales[-1]
    same_scales = [(scale, scale) for scale in summary.scales]
    against_largest = [(scale, largest_scale) for scale in summary.scales[:-1]]
    return [
        *(
            (f"{first_model.name} minus {other_model.name}", other_model, same_scales)
            for other_model in summary.models[1:]
        ),
        (
            f"{first_model.name}: each scale minus {largest_scale} tokens",
            first_model,
            against_largest,
        ),
    ]


def _differences_note(summary: Summary, missing_tasks: Collection[str]) -> str:
    note = (
        f"Points; paired bootstrap over images, {DRAWS:,} draws; p not corrected for the number "
        "of rows."
    )
    if missing_tasks:
        missing_names = ", ".join(
            summary.label(task) for task in summary.averaged if task in missing_tasks
        )
        note += (
            f" {missing_names}: no scores by document in the table's unit in some rows or all; "
            "these are over the other tasks."
        )
    if not summary.kind(None).higher_is_better:
        note += f" The score counts errors ({LESS}): below zero the first is better."
    return note


def _difference_texts(score_difference: Difference) -> list[str]:
    interval_text = (
        NOTHING
        if math.isnan(score_difference.low)
        else f"{score_difference.low:+.1f} to {score_difference.high:+.1f}"
    )
    return [f"{score_difference.value:+.1f}", interval_text, shown_p(score_difference.p)]


def changes_table(changes: Sequence[Change]) -> Table:
    """Two runs side by side."""
    table_rows = [
        [
            change.model if change.model == change.other else f"{change.model} − {change.other}",
            (change.task or tasks_text(change)) + ("" if change.higher_is_better else ARROW),
            str(change.scale),
            *_difference_texts(change.difference)[:2],
            shown_p(change.p),
            shown_p(change.p_holm),
            ("better" if change.is_for_better else "worse") if change.is_significant else "",
        ]
        for change in changes
    ]
    column_names = ["model", "task", "tokens", "change", "95 % interval", "p", "p after Holm", ""]
    note = (
        f"{ARROW.strip()}: {LESS}. "
        if not all(change.higher_is_better for change in changes)
        else ""
    )
    note += "Paired by document, images drawn with all their documents; Holm's correction among means, and among single tasks."
    return Table(
        "comparison",
        "This run minus the other, on the same documents",
        column_names,
        table_rows,
        note=note,
    )


def published_table(summary: Summary) -> Table:
    """Table of published scores for the run's tasks, a row per task and number of tokens, ours in
    front.
    """
    published_scores = {
        task: task_scores
        for task in (*summary.tasks, *summary.submitted)
        if (task_scores := summary.published(task))
    }
    paper_models = list(
        dict.fromkeys(
            score.label for task_scores in published_scores.values() for score in task_scores
        )
    )
    own_models = [model.name for model in summary.models]
    table_rows = []
    for task, task_scores in published_scores.items():
        tokens = sorted(
            {score.tokens for score in task_scores if score.tokens is not None}
            | set(summary.scales),
            key=read_budget,
        )
        for scale in tokens:
            own_scores = [summary.score(row_label, task, scale) for row_label in own_models]
            paper_values = [
                [s.value for s in task_scores if s.label == row_label and s.tokens == scale]
                for row_label in paper_models
            ]
            shown_theirs = [
                " / ".join(f"{value:.1f}" for value in of_model) for of_model in paper_values
            ]
            shown_mine = ["" if score is None else score_text(score) for score in own_scores]
            row_label = summary.label(task) if task in summary.tasks else f"{task} (at its server)"
            table_rows.append([f"{row_label}, {scale}", *shown_mine, *shown_theirs])
    paper_sources = dict.fromkeys(
        f"{s.label}: {s.paper}, {s.table}"
        for task_scores in published_scores.values()
        for s in task_scores
    )
    note = (
        "Papers count tokens per image, per tile of an image (LLaVA-NeXT) or per video. "
        + "; ".join(paper_sources)
    )
    return Table(
        "published",
        "Published scores beside ours",
        ["task, tokens", *own_models, *paper_models],
        table_rows,
        note=note,
    )


def score_text(score: Mean | None) -> str:
    """A score as 93.2±1.4."""
    if score is None:
        return "failed"
    return (
        f"{score.value:.1f}"
        if math.isnan(score.stderr)
        else f"{score.value:.1f}±{score.stderr:.1f}"
    )


def model_description(model: ModelRow) -> str:
    if model.method != OWN:
        return f"{get_method(model.method).about}, a control without training"
    scales = ", ".join(str(scale) for scale in model.trained_scales)
    return f"trained at {scales} visual tokens; * marks scales it was not trained at"


def write_csv(summary: Summary) -> Path:
    """summary.csv: a row per model and scale, with every axis of cost, every task, the mean, and
    how far it is behind the first model (above zero: the first is better).
    """
    csv_rows = [
        _csv_row(summary, model, scale) for model in summary.models for scale in summary.scales
    ]
    csv_file = summary.run / "summary.csv"
    write_text(csv_file, pandas.DataFrame(csv_rows).to_csv(index=False, float_format="%.6g"))
    return csv_file


def _csv_row(summary: Summary, model: ModelRow, scale: int | str) -> dict[str, object]:
    csv_row: dict[str, object] = {"model": model.name, "scale": scale}
    csv_row["trained_at_scale"] = model.is_trained(scale)
    csv_row |= cost_columns(summary, model.name, scale)
    for task in summary.tasks:
        score = summary.score(model.name, task, scale)
        csv_row[summary.family(task)] = None if score is None else score.value
        csv_row[f"{summary.family(task)}_stderr"] = None if score is None else score.stderr
    mean = summary.mean(model.name, scale)
    csv_row["mean"], csv_row["mean_stderr"] = (
        (None, None) if mean is None else (mean.value, mean.stderr)
    )
    compared_sides = Side(summary, summary.models[0].name, scale), Side(summary, model.name, scale)
    score_gap = None if model == summary.models[0] else difference(*compared_sides)
    low_gap, mean_gap, high_gap = (
        (None, None, None)
        if score_gap is None
        else (score_gap.low, score_gap.value, score_gap.high)
    )
    if score_gap is not None and not summary.kind(None).higher_is_better:
        low_gap, mean_gap, high_gap = -score_gap.high, -score_gap.value, -score_gap.low
    csv_row |= {
        "behind_first": mean_gap,
        "behind_first_low": low_gap,
        "behind_first_high": high_gap,
    }
    tasks = None if score_gap is None else len(comparable(*compared_sides, summary.averaged))
    return csv_row | {"behind_first_tasks": tasks}
