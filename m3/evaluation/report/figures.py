"""The other figures of a report: which samples need which scale, and measured time beside its
estimate.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from m3.evaluation.analysis.oracle import Oracle
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.latency import NO_DIFFERENCE
from m3.evaluation.cost.roofline import roofline
from m3.evaluation.report.budget_curve import COLOURS, FAINT, INK, LINES, resolution_marks
from m3.evaluation.report.charts import has_levels, spaced
from m3.evaluation.report.choice_report import choice_figure
from m3.evaluation.report.expert_load import routing_figure
from m3.evaluation.results.run_folder import CostRow, LatencyRow
from m3.hardware import accelerator
from m3.nesting import read_budget, resolutions
from m3.processing.scale_policy import is_budget

NEVER = "#d9d9d9"
TimedRow = TypeVar("TimedRow", CostRow, LatencyRow)


def figures(summary: Summary, device: str) -> dict[str, Figure]:
    """Name of the file -> figure, for what the run has numbers for."""
    drawn_figures = {}
    if any(summary.oracle(summary.models[0].name, task) is not None for task in summary.tasks):
        drawn_figures["oracle"] = oracle_figure(summary)
    if summary.latencies:
        drawn_figures["latency"] = latency_figure(summary, device)
    drawn_choices = choice_figure(summary)
    if drawn_choices is not None:
        drawn_figures["choices"] = drawn_choices
    expert_figure = routing_figure(summary)
    if expert_figure is not None:
        drawn_figures["experts"] = expert_figure
    return drawn_figures


def oracle_figure(summary: Summary) -> Figure:
    """A bar per task: the share of samples by the smallest scale that answers right, of the
    first model.
    """
    model_name = summary.models[0].name
    task_oracles = {
        task: task_oracle
        for task in summary.tasks
        if (task_oracle := summary.oracle(model_name, task)) is not None
    }
    figure = Figure(figsize=(7, 1.3 + 0.42 * len(task_oracles)), layout="constrained")
    axes = figure.subplots()
    shades = needs_shades(len(summary.scales))
    for bar_row, row_oracle in enumerate(task_oracles.values()):
        _oracle_bar(axes, bar_row, row_oracle, summary.scales, shades)
    labels = [*(f"{scale}" for scale in summary.scales), "never right"]
    legend_handles = [Patch(color=bar_colour) for bar_colour in [*shades, NEVER]]
    legend_title = "smallest right scale, visual tokens per image:"
    figure.legend(
        legend_handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        fontsize=9,
        title=legend_title,
    )
    axes.set_yticks(
        range(len(task_oracles)), [summary.family(task) for task in task_oracles], fontsize=9
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"share of the samples, % ({model_name})", fontsize=9)
    _plain(axes)
    return figure


def _oracle_bar(
    axes: Axes, bar_row: int, oracle: Oracle, scales: Sequence[int | str], shades: Sequence[str]
) -> None:
    """Shares of a task's samples side by side, the number in those that are wide enough."""
    bar_start = 0.0
    bar_parts = [
        (oracle.needs.get(scale, 0), shade) for scale, shade in zip(scales, shades, strict=True)
    ]
    for sample_count, bar_colour in [*bar_parts, (oracle.never, NEVER)]:
        percent_share = 100 * sample_count / oracle.n
        axes.barh(
            bar_row,
            percent_share,
            left=bar_start,
            color=bar_colour,
            edgecolor="white",
            linewidth=0.8,
            height=0.72,
        )
        if percent_share >= 6:
            axes.text(
                bar_start + percent_share / 2,
                bar_row,
                f"{percent_share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color=_ink(bar_colour),
            )
        bar_start += percent_share


def needs_shades(shade_count: int) -> list[str]:
    """From light to dark blue, one per scale: an order reads as an order in grey too."""
    light_rgb, dark_rgb = (0xD6, 0xE6, 0xF4), (0x08, 0x30, 0x6B)
    steps = [i / max(shade_count - 1, 1) for i in range(shade_count)]
    return [
        "#"
        + "".join(
            f"{round(a + (b - a) * step):02x}" for a, b in zip(light_rgb, dark_rgb, strict=True)
        )
        for step in steps
    ]


def _ink(colour: str) -> str:
    return "white" if sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) < 360 else INK


def latency_figure(summary: Summary, device: str) -> Figure:
    """Time to the first token and throughput against visual tokens: measured with lines (a mark
    per resolution), the estimate dotted.

    Budgets without a measurable difference stand at one height.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    first_axes, rate_axes = figure.subplots(1, 2)
    named_accelerator = accelerator(device)
    scale_ticks: list[float] = []
    for index, model in enumerate(summary.models):
        colour = COLOURS[index % len(COLOURS)]
        model_rows = [row for row in summary.latencies if row.model == model.name]
        scale_ticks = sorted({*scale_ticks, *(_tokens(row) for row in model_rows)})
        for style_index, batch in enumerate(sorted({row.batch_size for row in model_rows})):
            batch_rows = [row for row in model_rows if row.batch_size == batch]
            line_style = LINES[style_index % len(LINES)]
            level_rows = [
                row
                for one in batch_rows
                if (row := summary.level_latency(model.name, one.scale, batch)) is not None
            ]
            _measured_lines(first_axes, rate_axes, level_rows, colour, line_style)
        model_costs = [
            row for row in summary.costs if row.model == model.name and is_budget(row.scale)
        ]
        estimate_label = f"ESTIMATE, not measured: {named_accelerator.name}"
        for costs_at_side in _by_resolution(model_costs) if model_rows else ():
            first_axes.plot(
                [_tokens(row) for row in costs_at_side],
                [roofline(row, named_accelerator).first_token_s * 1e3 for row in costs_at_side],
                color="#555555",
                linestyle=":",
                linewidth=1.6,
                label=estimate_label if index == 0 else None,
            )
            estimate_label = None
    for axes, y_label in (
        (first_axes, "ms to the first token"),
        (rate_axes, "tokens per second after it"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("visual tokens per image", fontsize=9)
        axes.set_title(y_label, fontsize=10, loc="left", fontweight="bold", color=INK)
        _ticks(axes, scale_ticks)
        _plain(axes)
    if has_levels(summary):
        first_axes.text(
            *(0.02, 0.96, f"at one height: {NO_DIFFERENCE}"),
            transform=first_axes.transAxes,
            fontsize=8,
            color=FAINT,
        )
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _tokens(row: LatencyRow | CostRow) -> float:
    return float(read_budget(row.scale).tokens)


def _by_resolution(rows: Sequence[TimedRow]) -> list[list[TimedRow]]:
    """The rows of each resolution, ascending, in the order of their budgets."""
    sides = resolutions(read_budget(row.scale) for row in rows)
    in_order = sorted(rows, key=lambda row: read_budget(row.scale))
    return [[row for row in in_order if read_budget(row.scale).resolution == s] for s in sides]


def _measured_lines(
    first_axes: Axes,
    rate_axes: Axes,
    batch_rows: Sequence[LatencyRow],
    colour: str,
    line_style: Any,
) -> None:
    """The lines of a model at one batch size; error bars are the spread."""
    marks = resolution_marks([row.scale for row in batch_rows])
    for rows in _by_resolution(batch_rows):
        side = read_budget(rows[0].scale).resolution
        where = "" if side is None else f", at {side} pixels"
        look = {"color": colour, "linestyle": line_style, "marker": marks[side], "markersize": 4}
        first_axes.errorbar(
            [_tokens(row) for row in rows],
            [row.first_token_s * 1e3 for row in rows],
            yerr=[row.first_token_spread_s * 1e3 / 2 for row in rows],
            capsize=2,
            label=f"measured: {rows[0].model}, batch {rows[0].batch_size}{where}",
            **look,
        )
        rate_axes.plot([_tokens(row) for row in rows], [row.tokens_per_s for row in rows], **look)


def _ticks(axes: Axes, ticks: Sequence[float]) -> None:
    visible_ticks = spaced(list(ticks))
    axes.xaxis.set_major_locator(FixedLocator(visible_ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in visible_ticks])
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8.5, colors=INK)
    for spine_side in ("top", "right"):
        axes.spines[spine_side].set_visible(False)
