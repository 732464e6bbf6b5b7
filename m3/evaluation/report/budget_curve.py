"""The curve of a model over its budgets, drawn into a chart of score against cost.

Budgets of one resolution are a line. Budgets of several are a plane of tokens and resolution: every
resolution has a mark of its own and a thin line, and the thick line is the Pareto front over both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from m3.evaluation.analysis.frontier import has_resolutions, pareto_front
from m3.evaluation.statistics import Mean
from m3.nesting import read_budget, resolutions

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":")
INK, FAINT = "#222222", "#8a8a8a"
LARGEST_MARK = "o"
RESOLUTION_MARKS = ("s", "^", "D", "v", "P", "X")
THIN = {"linewidth": 0.9, "alpha": 0.5, "zorder": 2}


@dataclass(frozen=True)
class CurvePoint:
    """A budget in a chart: its place on the axis of cost, and its score."""

    x: float
    score: Mean
    scale: int | str
    is_trained: bool

    @property
    def resolution(self) -> int | None:
        return read_budget(self.scale).resolution


@dataclass(frozen=True)
class CurveLook:
    """Looks of a model's curve, and which way its scores are better.

    `marks`: resolution -> mark. `is_labelled`: the budgets of the front are named.
    """

    label: str
    colour: str
    line_style: str
    marks: dict[int | None, str]
    higher_is_better: bool = True
    is_labelled: bool = False


def resolution_marks(scales: Sequence[int | str]) -> dict[int | None, str]:
    """Resolution of the budgets -> its mark; the largest (None) has that of plain curves."""
    sides = [side for side in resolutions(map(read_budget, scales)) if side is not None]
    marks = {
        side: RESOLUTION_MARKS[index % len(RESOLUTION_MARKS)] for index, side in enumerate(sides)
    }
    return {**marks, None: LARGEST_MARK}


def draw_curve(axes: Axes, points: Sequence[CurvePoint], look: CurveLook) -> None:
    """Error bars, lines and marks; hollow marks where the budget was not trained."""
    is_plane = has_resolutions([point.scale for point in points])
    errors = [0.0 if math.isnan(point.score.stderr) else point.score.stderr for point in points]
    axes.errorbar(
        [point.x for point in points],
        [point.score.value for point in points],
        yerr=errors,
        color=look.colour,
        linestyle="none" if is_plane else look.line_style,
        linewidth=1.8,
        capsize=2.5,
        zorder=3,
    )
    if is_plane:
        _plane_lines(axes, points, look)
    fills = [look.colour if point.is_trained else "white" for point in points]
    for point, fill in zip(points, fills, strict=True):
        axes.plot(
            point.x,
            point.score.value,
            look.marks[point.resolution],
            color=look.colour,
            markerfacecolor=fill,
            markersize=6,
            zorder=4,
        )
    axes.plot(
        [],
        [],
        color=look.colour,
        linestyle=look.line_style,
        marker=LARGEST_MARK,
        markerfacecolor=fills[0],
        label=f"{look.label} (thick: Pareto front)" if is_plane else look.label,
    )
    for side in point_resolutions(points) if is_plane else ():
        side_label = "largest resolution" if side is None else f"{side} pixels"
        axes.plot([], [], look.marks[side], color=FAINT, label=side_label)


def point_resolutions(points: Sequence[CurvePoint]) -> tuple[int | None, ...]:
    """Resolutions of the points, ascending, the largest (None) last."""
    return resolutions(read_budget(point.scale) for point in points)


def front_points(points: Sequence[CurvePoint], higher_is_better: bool) -> list[CurvePoint]:
    """Points that no other beats, cheapest first."""
    sign = 1.0 if higher_is_better else -1.0
    front = pareto_front([(point.x, sign * point.score.value) for point in points])
    return [points[index] for index in front]


def _plane_lines(axes: Axes, points: Sequence[CurvePoint], look: CurveLook) -> None:
    """A thin line per resolution, and the thick front over all."""
    for side in point_resolutions(points):
        at_side = sorted(
            (point.x, point.score.value) for point in points if point.resolution == side
        )
        axes.plot(*zip(*at_side, strict=True), color=look.colour, linestyle="-", **THIN)
    front = front_points(points, look.higher_is_better)
    axes.plot(
        [point.x for point in front],
        [point.score.value for point in front],
        color=look.colour,
        linestyle=look.line_style,
        linewidth=1.8,
        zorder=3,
    )
    for point in front if look.is_labelled else ():
        axes.annotate(
            str(point.scale),
            (point.x, point.score.value),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=look.colour,
        )
