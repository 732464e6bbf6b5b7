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
from m3.evaluation.published import PublishedScore
from m3.evaluation.results.run_folder import CostRow, LatencyRow
from m3.evaluation.statistics import Mean
from m3.evaluation.token_reduction.table import OWN

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":")
PUBLISHED_MARKS = ("s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#8a8a8a"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the mean (`task` None) or one task against an axis of cost."""

    title: str
    x_label: str
    task: str | None
    axis: str = BY_TOKENS

    def x(self, cost: CostRow, latency: LatencyRow | None) -> float | None:
        """Where a budget stands on the horizontal axis."""
        return COST_AXES[self.axis].value(cost, latency)

    @property
    def is_by_tokens(self) -> bool:
        return self.axis == BY_TOKENS


def panels(summary: Summary) -> tuple[list[Panel], list[Panel]]:
    """Panels of the mean, one per kind of cost that is known, and panels of the tasks against
    visual tokens.
    """
    name = "Mean" if summary.kind(None).higher_is_better else f"Mean{ARROW}"
    means = [
        Panel(f"{name}, by {axis.title}", axis.label, None, key)
        for key, axis in COST_AXES.items()
        if axis.title and (summary.latencies or not axis.is_measured)
    ]
    if len(summary.tasks) == 1:
        return means, []
    label = (
        "visual tokens in a prompt of the task"
        if summary.task_costs
        else COST_AXES[BY_TOKENS].label
    )
    return means, [Panel(summary.label(task), label, task) for task in summary.tasks]


def accuracy_figure(summary: Summary) -> Figure:
    """All panels: the means above, the tasks below in rows of three."""
    means, tasks = panels(summary)
    rows = math.ceil(len(tasks) / 3)
    figure = Figure(figsize=(12, 3.9 + 2.7 * rows), layout="constrained")
    parts = (
        figure.add_gridspec(2, 1, height_ratios=[3.6, 2.7 * rows], hspace=0.03)
        if rows
        else figure.add_gridspec(1, 1)
    )
    top = figure.add_subfigure(parts[0])
    bottom = figure.add_subfigure(parts[1]) if rows else None
    for axes, panel in zip(top.subplots(1, len(means), sharey=True), means, strict=True):
        draw(axes, panel, summary)
    if bottom is not None:
        # points would press the shares flat
        alike = all(kind.is_share for kind in summary.kinds.values())
        grid = bottom.subplots(rows, 3, sharex=True, sharey=alike, squeeze=False).flatten()
        for index, axes in enumerate(grid):
            if index < len(tasks):
                draw(axes, tasks[index], summary, is_small=True)
                axes.set_xlabel(tasks[index].x_label if index >= len(tasks) - 3 else "")
                lower = not summary.kind(tasks[index].task).higher_is_better
                axes.set_ylabel(f"score ({LESS})" if lower else "score" if index % 3 == 0 else "")
                axes.xaxis.set_tick_params(labelbottom=index >= len(tasks) - 3)
            else:
                axes.set_visible(False)
    for index, axes in enumerate(top.axes):
        unit = "mean score" if summary.kind(None).higher_is_better else f"mean score ({LESS})"
        axes.set_ylabel(unit if index == 0 else "")
    legend = {}
    for part in (top, bottom):
        for axes in part.axes if part is not None else []:
            legend |= {
                label: handle
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
    columns = min(len(legend), 4)
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=10,
    )
    return figure


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Writes `path` in each format, aside first.

    Without a fixed salt and date two drawings of one run would differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    # 42: letters stay letters, as publishers ask
    with rc_context({"svg.hashsalt": "m3", "pdf.fonttype": 42}):
        for kind in formats:
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
            aside = path.with_name(f".{path.name}.{kind}")
            figure.savefig(aside, dpi=150, format=kind, facecolor="white", metadata=metadata)
            written.append(aside.replace(path.with_name(f"{path.name}.{kind}")))
    return written


def draw(axes: Axes, panel: Panel, summary: Summary, is_small: bool = False) -> None:
    """A line per model with error bars; hollow marks where the scale was not trained; dotted
    lines for blind guesses.
    """
    ticks: dict[float, int] = {}
    lowest = 0.0
    for index, model in enumerate(summary.models):
        points = []
        for scale in summary.scales:
            score = (
                summary.mean(model.name, scale)
                if panel.task is None
                else summary.score(model.name, panel.task, scale)
            )
            cost = summary.cost(model.name, scale, panel.task if summary.task_costs else None)
            x = None if cost is None else panel.x(cost, summary.latency(model.name, scale))
            # 0: no picture in a prompt, and no place on a logarithmic axis
            if score is not None and x:
                points.append((x, score, model.is_trained(scale)))
                ticks.setdefault(x, scale)
                lowest = min(lowest, score.value)
        if points:
            is_hollow = model.method == OWN and not all(trained for _, _, trained in points)
            _line(
                axes,
                points,
                index,
                f"{model.name} (hollow: plain pooling)" if is_hollow else model.name,
            )
    if panel.task is not None and panel.is_by_tokens:
        _published(axes, summary, panel.task, ticks)
    for name, style in (("chance", ":"), ("majority", (0, (1, 3)))):
        value = summary.baseline(name, panel.task)
        if value is not None:
            label = "chance" if name == "chance" else "majority answer"
            axes.axhline(value, color=FAINT, linestyle=style, linewidth=1.2, label=label)
    _dress(axes, panel, sorted(ticks), lowest, is_small)


def _published(axes: Axes, summary: Summary, task: str, ticks: dict[float, int]) -> None:
    """Thin grey curves with a mark of their own per published model, each scale where ours has
    it; the rest is in the table.
    """
    found, own = summary.published(task), dict(ticks)
    for index, name in enumerate(dict.fromkeys(score.label for score in found)):
        places = [(place(score, own), score.value) for score in found if score.label == name]
        points = sorted((at, value) for at, value in places if at is not None)
        if not points:
            continue
        x, y = [at for at, _ in points], [value for _, value in points]
        mark = PUBLISHED_MARKS[index % len(PUBLISHED_MARKS)]
        axes.plot(
            x,
            y,
            color=FAINT,
            linewidth=0.9,
            marker=mark,
            markersize=4,
            label=f"published: {name}",
            zorder=2,
        )
        ticks |= {at: round(at) for at in x if at not in ticks}


def place(score: PublishedScore, ticks: Mapping[float, int]) -> float | None:
    """Where a published score stands among `ticks`, tokens in the prompt -> scale.

    Papers count tokens per image or tile, so a score at a scale stands where ours at it does; at
    another scale only where a prompt has as many tokens as its scale says. Tokens per video are
    those of the prompt.
    """
    if score.tokens is None:
        return None
    same = [at for at, scale in ticks.items() if scale == score.tokens]
    if score.tokens_per != "video" and same:
        return same[0]
    is_one = score.tokens_per == "video" or all(at == scale for at, scale in ticks.items())
    return float(score.tokens) if is_one else None


def _line(axes: Axes, points: list[tuple[float, Mean, bool]], index: int, name: str) -> None:
    colour, style = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
    x, y = [at for at, _, _ in points], [score.value for _, score, _ in points]
    errors = [0.0 if math.isnan(score.stderr) else score.stderr for _, score, _ in points]
    fills = [colour if trained else "white" for _, _, trained in points]
    axes.errorbar(
        x, y, yerr=errors, color=colour, linestyle=style, linewidth=1.8, capsize=2.5, zorder=3
    )
    for at, value, fill in zip(x, y, fills, strict=True):
        axes.plot(at, value, "o", color=colour, markerfacecolor=fill, markersize=6, zorder=4)
    axes.plot(
        [], [], color=colour, linestyle=style, marker="o", markerfacecolor=fills[0], label=name
    )


def _dress(axes: Axes, panel: Panel, ticks: list[float], lowest: float, is_small: bool) -> None:
    axes.set_xscale("log")
    kept = spaced(ticks)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if not ticks:
        axes.text(
            0.5,
            0.5,
            "no score, or no picture in the prompts",
            transform=axes.transAxes,
            ha="center",
            fontsize=9,
        )
    elif lowest == 0.0 and axes.dataLim.ymax <= 100.0:
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
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def spaced(ticks: list[float]) -> list[float]:
    """Ticks far enough apart on the log axis for their labels not to touch; the ends are kept."""
    if len(ticks) < 3:
        return ticks
    least = (math.log(ticks[-1]) - math.log(ticks[0])) / 8
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if math.log(tick / kept[-1]) >= least and math.log(ticks[-1] / tick) >= least:
            kept.append(tick)
    return [*kept, ticks[-1]]
