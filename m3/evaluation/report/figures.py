"""The other figures of a report: which samples need which scale, and measured time beside its
estimate.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.roofline import accelerator, roofline
from m3.evaluation.report.charts import COLOURS, INK, LINES, spaced
from m3.evaluation.report.expert_load import routing_figure

NEVER = "#d9d9d9"


def figures(summary: Summary, device: str) -> dict[str, Figure]:
    """Name of the file -> figure, for what the run has numbers for."""
    found = {}
    if any(summary.oracle(summary.models[0].name, task) is not None for task in summary.tasks):
        found["oracle"] = oracle_figure(summary)
    if summary.latencies:
        found["latency"] = latency_figure(summary, device)
    experts = routing_figure(summary)
    if experts is not None:
        found["experts"] = experts
    return found


def oracle_figure(summary: Summary) -> Figure:
    """A bar per task: the share of samples by the smallest scale that answers right, of the
    first model.
    """
    name = summary.models[0].name
    known = {task: one for task in summary.tasks if (one := summary.oracle(name, task)) is not None}
    figure = Figure(figsize=(7, 1.3 + 0.42 * len(known)), layout="constrained")
    axes = figure.subplots()
    shades = needs_shades(len(summary.scales))
    for row, (_, found) in enumerate(known.items()):
        left = 0.0
        parts = [
            *((found.needs.get(scale, 0), shades[i]) for i, scale in enumerate(summary.scales)),
            (found.never, NEVER),
        ]
        for count, colour in parts:
            share = 100 * count / found.n
            axes.barh(
                row, share, left=left, color=colour, edgecolor="white", linewidth=0.8, height=0.72
            )
            if share >= 6:
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=_ink(colour),
                )
            left += share
    labels = [*(f"{scale}" for scale in summary.scales), "never right"]
    handles = [Patch(color=colour) for colour in [*shades, NEVER]]
    title = "smallest right scale, visual tokens per image:"
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        fontsize=9,
        title=title,
    )
    axes.set_yticks(range(len(known)), [summary.family(task) for task in known], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"share of the samples, % ({name})", fontsize=9)
    _plain(axes)
    return figure


def needs_shades(number: int) -> list[str]:
    """From light to dark blue, one per scale: an order reads as an order in grey too."""
    light, dark = (0xD6, 0xE6, 0xF4), (0x08, 0x30, 0x6B)
    steps = [i / max(number - 1, 1) for i in range(number)]
    return [
        "#" + "".join(f"{round(a + (b - a) * step):02x}" for a, b in zip(light, dark, strict=True))
        for step in steps
    ]


def _ink(colour: str) -> str:
    return "white" if sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) < 360 else INK


def latency_figure(summary: Summary, device: str) -> Figure:
    """Time to the first token and throughput against visual tokens: measured with lines, the
    estimate hatched below.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = accelerator(device)
    ticks: list[float] = []
    for index, model in enumerate(summary.models):
        rows = [row for row in summary.latencies if row.model == model.name]
        for style, batch in enumerate(sorted({row.batch_size for row in rows})):
            of_batch = [row for row in rows if row.batch_size == batch]
            x = [float(row.scale) for row in of_batch]
            ticks = sorted({*ticks, *x})
            dress = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": LINES[style % len(LINES)],
                "marker": "o",
            }
            label = f"measured: {model.name}, batch {batch}"
            first = [row.first_token_s * 1e3 for row in of_batch]
            errors = [row.first_token_spread_s * 1e3 / 2 for row in of_batch]
            left.errorbar(x, first, yerr=errors, markersize=4, capsize=2, label=label, **dress)
            right.plot(x, [row.tokens_per_s for row in of_batch], markersize=4, **dress)
        costs = [row for row in summary.costs if row.model == model.name]
        guess = [roofline(row, chosen).first_token_s * 1e3 for row in costs]
        if guess and rows:
            label = f"ESTIMATE, not measured: {chosen.name}" if index == 0 else None
            left.plot(
                [row.scale for row in costs],
                guess,
                color="#555555",
                linestyle=":",
                linewidth=1.6,
                label=label,
            )
    for axes, title in ((left, "ms to the first token"), (right, "tokens per second after it")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("visual tokens per image", fontsize=9)
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold", color=INK)
        _ticks(axes, ticks)
        _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _ticks(axes: Axes, ticks: Sequence[float]) -> None:
    kept = spaced(list(ticks))
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in kept])
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
