"""Expert load and routing entropy in a report: a table, a figure, a file of all loads, and what the
page draws.

In: a `Summary`. Out: `Table`, `Figure`, expert_load.csv, JSON. What the measures mean: routing.py.
A dense decoder has a line that says so, in the place of numbers.
"""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.answering.expert_routing import DOCUMENTS, TOKENS, Routing
from m3.evaluation.report.charts import INK
from m3.evaluation.report.table_formats import NOTHING, Table
from m3.evaluation.results.run_folder import ModelRow, write_text
from m3.evaluation.token_reduction.table import FASTV

MEASURES = ("entropy", "spread", "busiest")
MOST_PANELS = 5


def routing_table(summary: Summary) -> Table:
    """A block per model, a row per scale: means over the layers, and the busiest expert of any
    layer.
    """
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        found = {scale: summary.routings.get((model.name, scale)) for scale in summary.scales}
        known = {scale: one for scale, one in found.items() if one is not None}
        blocks[len(rows)] = _about(model, next(iter(known.values()), None))
        if not known:
            rows.append(["all", *[NOTHING] * 8])
        rows += [_row(scale, one) for scale, one in known.items()]
    header = ["tokens", *(f"{kind} {name}" for kind in TOKENS for name in ("counted", *MEASURES))]
    caption = "Experts that the tokens of prompts choose, by visual tokens per image"
    note = (
        "Entropy: how undecided routers are, mean over tokens and layers, 0 is decided, 1 without "
        "preference. Spread: entropy "
        "of the load, mean over layers, 1 is balanced. Busiest: the most used expert of any layer, "
        "in fair shares. Few counted "
        "tokens look unbalanced by chance alone. "
        f"At most {DOCUMENTS} documents of a task are recorded; generated tokens are not counted."
    )
    return Table(
        "experts", caption, header, rows if summary_has_routers(summary) else [], blocks, note
    )


def summary_has_routers(summary: Summary) -> bool:
    """Whether the run knows of any model what its decoder is; runs from before did not record
    it.
    """
    return any(model.routers is not None for model in summary.models)


def _about(model: ModelRow, one: Routing | None) -> str:
    if one is not None:
        return f"{model.name}: {one.choices.shape[1]} layers of {one.experts} experts"
    if model.routers == 0:
        return f"{model.name}: a dense decoder, it has no experts"
    if model.method == FASTV:
        return f"{model.name}: not recorded, since tokens that this control drops are still routed"
    return f"{model.name}: not recorded; its answers are of an older run"


def _row(scale: int, one: Routing) -> list[str]:
    cells = []
    for kind in range(len(TOKENS)):
        means = [one.undecided(kind).mean(), one.spread(kind).mean(), one.busiest(kind).max()]
        cells += [
            str(one.tokens[kind]),
            *(NOTHING if math.isnan(value) else f"{value:.2f}" for value in means),
        ]
    return [str(scale), *cells]


def routing_figure(summary: Summary) -> Figure | None:
    """Maps of layers x experts, a column per scale, visual tokens above and text below, of the
    first model with experts.
    """
    name = next(
        (
            model.name
            for model in summary.models
            if (model.name, summary.scales[-1]) in summary.routings
        ),
        None,
    )
    if name is None:
        return None
    scales = [scale for scale in summary.scales if (name, scale) in summary.routings]
    picked = sorted(
        {scales[round(i)] for i in np.linspace(0, len(scales) - 1, min(len(scales), MOST_PANELS))}
    )
    figure = Figure(figsize=(1.6 + 2.1 * len(picked), 4.2), layout="constrained")
    axes = figure.subplots(2, len(picked), sharex=True, sharey=True, squeeze=False)
    shown = {scale: summary.routings[name, scale] for scale in picked}
    most = max(
        float(np.nanmax(one.experts * one.load(kind))) for one in shown.values() for kind in (0, 1)
    )
    drawn = None
    for kind, label in enumerate(TOKENS):
        for column, (scale, one) in enumerate(shown.items()):
            at = axes[kind][column]
            drawn = at.imshow(
                one.experts * one.load(kind), aspect="auto", cmap="cividis", vmin=0, vmax=most
            )
            at.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            at.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            at.tick_params(labelsize=8, colors=INK)
            unit = "token" if scale == 1 else "tokens"
            at.set_title(
                f"{scale} {unit}" if kind == 0 else "",
                fontsize=10,
                loc="left",
                fontweight="bold",
                color=INK,
            )
            at.set_ylabel(f"{label} tokens\nlayer" if column == 0 else "", fontsize=9)
            at.set_xlabel("expert" if kind == 1 else "", fontsize=9)
    assert drawn is not None  # there is a scale, or there were no name
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
    bar.set_label(f"load in fair shares (1 is balanced), {name}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def write_loads(summary: Summary) -> Path | None:
    """expert_load.csv: a row per model, scale, kind of token, layer and expert; None where
    nothing was recorded.
    """
    if not summary.routings:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "model",
            "scale",
            "tokens",
            "counted",
            "layer",
            "routing_entropy",
            "expert",
            "choices",
            "load",
        ]
    )
    for (name, scale), one in summary.routings.items():
        for kind, label in enumerate(TOKENS):
            load, entropy = one.load(kind), one.undecided(kind)
            for (layer, expert), choices in np.ndenumerate(one.choices[kind]):
                numbers = [
                    "" if math.isnan(x) else f"{x:.6g}"
                    for x in (entropy[layer], load[layer, expert])
                ]
                about = [name, scale, label, one.tokens[kind], layer]
                writer.writerow([*about, numbers[0], expert, choices, numbers[1]])
    path = summary.run / "expert_load.csv"
    write_text(path, text.getvalue())
    return path


def routing_data(summary: Summary) -> dict[str, dict[int, dict[str, list[list[float]]]]]:
    """model -> scale -> kind of token -> layers x experts, in fair shares, for the page; kinds
    without a token are left out.
    """
    found: dict[str, dict[int, Any]] = {}
    for (name, scale), one in summary.routings.items():
        of_kinds = {
            label: one.experts * one.load(kind)
            for kind, label in enumerate(TOKENS)
            if one.tokens[kind]
        }
        found.setdefault(name, {})[scale] = {
            label: np.round(map_, 2).tolist() for label, map_ in of_kinds.items()
        }
    return found
