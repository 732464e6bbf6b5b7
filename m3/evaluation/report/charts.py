"""Accuracy against cost, drawn from a `Summary` for print: the means and every task, with what
papers report for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from m3.evaluation.analysis.metric_kind import ARROW, LESS
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.axes import BY_TOKENS, COST_AXES
from m3.evaluation.cost.latency import NO_DIFFERENCE
from m3.evaluation.published import PublishedScore
from m3.evaluation.report.budget_curve import (
    COLOURS,
    FAINT,
    INK,
    LINES,
    CurveLook,
    CurvePoint,
    draw_curve,
    resolution_marks,
)
from m3.evaluation.results.run_folder import CostRow, LatencyRow, ModelRow
from m3.evaluation.token_reduction.methods import OWN
from m3.files import atomic_file
from m3.nesting import read_budget

PUBLISHED_MARKS = ("s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the mean (`task` None) or one task against an axis of cost."""

    title: str
    x_label: str
    task: str | None
    axis: str = BY_TOKENS

    def x(self, cost: CostRow, latency: LatencyRow | None) -> float | None:
        """Position of a budget on the horizontal axis."""
        return COST_AXES[self.axis].value(cost, latency)

    @property
    def is_by_tokens(self) -> bool:
        return self.axis == BY_TOKENS


def panels(summary: Summary) -> tuple[list[Panel], list[Panel]]:
    """Panels of the mean, one per kind of cost that is known, and panels of the tasks against
    visual tokens.
    """
    mean_title = "Mean" if summary.kind(None).higher_is_better else f"Mean{ARROW}"
    mean_panels = [
        Panel(f"{mean_title}, by {axis.title}", axis.label, None, key)
        for key, axis in COST_AXES.items()
        if axis.title and (summary.latencies or not axis.is_measured)
    ]
    if len(summary.tasks) == 1:
        return mean_panels, []
    token_label = (
        "visual tokens in a prompt of the task"
        if summary.task_costs
        else COST_AXES[BY_TOKENS].label
    )
    return mean_panels, [Panel(summary.label(task), token_label, task) for task in summary.tasks]


def accuracy_figure(summary: Summary) -> Figure:
    """All panels: the means above, the tasks below in rows of three."""
    mean_panels, task_panels = panels(summary)
    task_rows = math.ceil(len(task_panels) / 3)
    figure = Figure(figsize=(12, 3.9 + 2.7 * task_rows), layout="constrained")
    grid_parts = (
        figure.add_gridspec(2, 1, height_ratios=[3.6, 2.7 * task_rows], hspace=0.03)
        if task_rows
        else figure.add_gridspec(1, 1)
    )
    top_figure = figure.add_subfigure(grid_parts[0])
    bottom_figure = figure.add_subfigure(grid_parts[1]) if task_rows else None
    for axes, panel in zip(
        top_figure.subplots(1, len(mean_panels), sharey=True), mean_panels, strict=True
    ):
        draw(axes, panel, summary)
    if bottom_figure is not None:
        # points would press the shares flat
        all_shares = all(kind.is_share for kind in summary.kinds.values())
        grid = bottom_figure.subplots(
            task_rows, 3, sharex=True, sharey=all_shares, squeeze=False
        ).flatten()
        for index, axes in enumerate(grid):
            if index < len(task_panels):
                draw(axes, task_panels[index], summary, is_small=True)
                axes.set_xlabel(task_panels[index].x_label if index >= len(task_panels) - 3 else "")
                less_is_better = not summary.kind(task_panels[index].task).higher_is_better
                axes.set_ylabel(
                    f"score ({LESS})" if less_is_better else "score" if index % 3 == 0 else ""
                )
                axes.xaxis.set_tick_params(labelbottom=index >= len(task_panels) - 3)
            else:
                axes.set_visible(False)
    for index, axes in enumerate(top_figure.axes):
        y_label = "mean score" if summary.kind(None).higher_is_better else f"mean score ({LESS})"
        axes.set_ylabel(y_label if index == 0 else "")
    legend_entries = {}
    for subfigure in (top_figure, bottom_figure):
        for axes in subfigure.axes if subfigure is not None else []:
            legend_entries |= {
                label: handle
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
    legend_columns = min(len(legend_entries), 4)
    figure.legend(
        list(legend_entries.values()),
        list(legend_entries),
        loc="outside upper center",
        ncols=legend_columns,
        frameon=False,
        fontsize=10,
    )
    return figure


def save(figure: Figure, file_stem: Path, formats: Sequence[str]) -> list[Path]:
    """Writes `file_stem` in each format.

    Without a fixed salt and date two drawings of one run would differ.
    """
    written_files = []
    # 42: letters stay letters, as publishers ask
    with rc_context({"svg.hashsalt": "m3", "pdf.fonttype": 42}):
        for file_format in formats:
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[
                file_format
            ]
            chart_file = file_stem.with_name(f"{file_stem.name}.{file_format}")
            with atomic_file(chart_file) as temporary_file:
                figure.savefig(
                    temporary_file,
                    dpi=150,
                    format=file_format,
                    facecolor="white",
                    metadata=metadata,
                )
            written_files.append(chart_file)
    return written_files


def draw(axes: Axes, panel: Panel, summary: Summary, is_small: bool = False) -> None:
    """A curve per model with error bars; hollow marks where the budget was not trained; dotted
    lines for blind guesses.
    """
    scale_ticks: dict[float, int | str] = {}
    lowest_score = 0.0
    kind, marks = summary.kind(panel.task), resolution_marks(summary.scales)
    for index, model in enumerate(summary.models):
        points = model_points(panel, summary, model)
        for point in points:
            if isinstance(point.scale, int) or point.x not in scale_ticks:
                scale_ticks[point.x] = point.scale
            lowest_score = min(lowest_score, point.score.value)
        if points:
            is_hollow = model.method == OWN and not all(point.is_trained for point in points)
            look = CurveLook(
                f"{model.name} (hollow: plain pooling)" if is_hollow else model.name,
                COLOURS[index % len(COLOURS)],
                LINES[index % len(LINES)],
                marks,
                kind.higher_is_better,
                is_labelled=not is_small and not panel.is_by_tokens and index == 0,
            )
            draw_curve(axes, points, look)
        _draw_choices(axes, panel, summary, model, COLOURS[index % len(COLOURS)])
    if panel.task is not None and panel.is_by_tokens:
        _published(axes, summary, panel.task, scale_ticks)
    for baseline_name, line_style in (("chance", ":"), ("majority", (0, (1, 3)))):
        baseline_value = summary.baseline(baseline_name, panel.task)
        if baseline_value is not None:
            line_label = "chance" if baseline_name == "chance" else "majority answer"
            axes.axhline(
                baseline_value, color=FAINT, linestyle=line_style, linewidth=1.2, label=line_label
            )
    _dress(axes, panel, sorted(scale_ticks), lowest_score, is_small)
    if COST_AXES[panel.axis].is_measured and has_levels(summary):
        axes.text(
            *(0.98, 0.02, f"one above the other: {NO_DIFFERENCE}"),
            transform=axes.transAxes,
            ha="right",
            fontsize=7.5,
            color=FAINT,
        )


def _draw_choices(axes: Axes, panel: Panel, summary: Summary, model: ModelRow, colour: str) -> None:
    """Stars for choices among the budgets, which have computed costs alone."""
    for point in model_points(panel, summary, model, summary.choices_of(model.name)):
        axes.plot(point.x, point.score.value, "*", color=colour, markersize=11, zorder=5)
        if panel.task is None:
            axes.annotate(
                str(point.scale),
                (point.x, point.score.value),
                xytext=(0, -13),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colour,
            )
    if summary.choices_of(model.name):
        axes.plot([], [], "*", color=colour, markersize=11, label=f"{model.name}, its choices")


def model_points(
    panel: Panel, summary: Summary, model: ModelRow, settings: Sequence[int | str] | None = None
) -> list[CurvePoint]:
    """The budgets of a model (or other settings) that have a score and a place on the panel's axis."""
    points = []
    for scale in summary.scales if settings is None else settings:
        score = (
            summary.mean(model.name, scale)
            if panel.task is None
            else summary.score(model.name, panel.task, scale)
        )
        cost = summary.cost(model.name, scale, panel.task if summary.task_costs else None)
        x = None if cost is None else panel.x(cost, summary.level_latency(model.name, scale))
        # 0: no picture in a prompt, and no place on a logarithmic axis
        if score is not None and x:
            points.append(CurvePoint(x, score, scale, model.is_trained(scale)))
    return points


def has_levels(summary: Summary) -> bool:
    """Tell whether some budgets of a model have no measurable difference in time."""
    return any(
        len(level.scales) > 1 for model in summary.models for level in summary.levels(model.name)
    )


def _published(
    axes: Axes, summary: Summary, task: str, scale_ticks: dict[float, int | str]
) -> None:
    """Thin grey curves with a mark of their own per published model, each scale where ours has
    it; the rest is in the table.
    """
    published_scores, own_ticks = summary.published(task), dict(scale_ticks)
    for index, model_label in enumerate(dict.fromkeys(score.label for score in published_scores)):
        score_points = [
            (place(score, own_ticks), score.value)
            for score in published_scores
            if score.label == model_label
        ]
        drawn_points = sorted(
            (x_position, y_value) for x_position, y_value in score_points if x_position is not None
        )
        if not drawn_points:
            continue
        x, y = (
            [x_position for x_position, _ in drawn_points],
            [y_value for _, y_value in drawn_points],
        )
        marker_shape = PUBLISHED_MARKS[index % len(PUBLISHED_MARKS)]
        axes.plot(
            x,
            y,
            color=FAINT,
            linewidth=0.9,
            marker=marker_shape,
            markersize=4,
            label=f"published: {model_label}",
            zorder=2,
        )
        scale_ticks |= {
            x_position: round(x_position) for x_position in x if x_position not in scale_ticks
        }


def place(score: PublishedScore, scale_ticks: Mapping[float, int | str]) -> float | None:
    """Position of a published score among `ticks`, tokens in the prompt -> budget.

    Papers count tokens per image or tile, so a score at a scale stands where ours at it does; at
    another scale only where a prompt has as many tokens as its scale says. Tokens per video are
    those of the prompt.
    """
    if score.tokens is None:
        return None
    tick_positions = [
        tick_position for tick_position, scale in scale_ticks.items() if scale == score.tokens
    ]
    if score.tokens_per != "video" and tick_positions:
        return tick_positions[0]
    is_one = score.tokens_per == "video" or all(
        tick_position == read_budget(scale).tokens for tick_position, scale in scale_ticks.items()
    )
    return float(score.tokens) if is_one else None


def _dress(
    axes: Axes, panel: Panel, scale_ticks: list[float], lowest_score: float, is_small: bool
) -> None:
    axes.set_xscale("log")
    visible_ticks = spaced(scale_ticks)
    axes.xaxis.set_major_locator(FixedLocator(visible_ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick_value, _: f"{tick_value:.3g}"))
    if not scale_ticks:
        axes.text(
            0.5,
            0.5,
            "no score, or no picture in the prompts",
            transform=axes.transAxes,
            ha="center",
            fontsize=9,
        )
    elif lowest_score == 0.0 and axes.dataLim.ymax <= 100.0:
        axes.set_ylim(0, 104)
        axes.yaxis.set_major_locator(FixedLocator([0, 20, 40, 60, 80, 100]))
    axes.set_title(
        panel.title, fontsize=10 if is_small else 11, color=INK, loc="left", fontweight="bold"
    )
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel("score", fontsize=9)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine_side in ("top", "right"):
        axes.spines[spine_side].set_visible(False)


def spaced(scale_ticks: list[float]) -> list[float]:
    """Ticks far enough apart on the log axis for their labels not to touch; the ends are kept."""
    if len(scale_ticks) < 3:
        return scale_ticks
    least_distance = (math.log(scale_ticks[-1]) - math.log(scale_ticks[0])) / 8
    visible_ticks = [scale_ticks[0]]
    for tick in scale_ticks[1:-1]:
        if (
            math.log(tick / visible_ticks[-1]) >= least_distance
            and math.log(scale_ticks[-1] / tick) >= least_distance
        ):
            visible_ticks.append(tick)
    return [*visible_ticks, scale_ticks[-1]]
