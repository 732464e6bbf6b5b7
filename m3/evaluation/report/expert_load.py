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
from m3.evaluation.report.budget_curve import INK
from m3.evaluation.report.table_formats import NOTHING, Table
from m3.evaluation.results.run_folder import ModelRow
from m3.evaluation.token_reduction.methods import FASTV
from m3.files import write_text

MEASURES = ("entropy", "spread", "busiest")
MOST_PANELS = 5


def routing_table(summary: Summary) -> Table:
    """A block per model, a row per scale: means over the layers, and the busiest expert of any
    layer.
    """
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models:
        all_routings = {
            scale: summary.routings.get((model.name, scale)) for scale in summary.scales
        }
        known_routings = {
            scale: scale_routing
            for scale, scale_routing in all_routings.items()
            if scale_routing is not None
        }
        block_titles[len(table_rows)] = _about(model, next(iter(known_routings.values()), None))
        if not known_routings:
            table_rows.append(["all", *[NOTHING] * 8])
        table_rows += [
            _row(scale, scale_routing) for scale, scale_routing in known_routings.items()
        ]
    column_names = [
        "tokens",
        *(
            f"{token_kind} {measure_name}"
            for token_kind in TOKENS
            for measure_name in ("counted", *MEASURES)
        ),
    ]
    caption = "Experts that the tokens of prompts choose, by visual tokens per image"
    note = (
        "Entropy: how undecided routers are, mean over tokens and layers, 0 is decided, 1 without "
        "preference. Spread: entropy "
        "of the load, mean over layers, 1 is balanced. Busiest: the most used expert of any layer, "
        "in fair shares. Few counted "
        "tokens look unbalanced by chance alone. "
        f"At most {DOCUMENTS} documents of a task are recorded; generated tokens are not counted."
    )
    return Table("experts", caption, column_names, table_rows, block_titles, note)


def _about(model: ModelRow, scale_routing: Routing | None) -> str:
    if scale_routing is not None:
        return f"{model.name}: {scale_routing.choices.shape[1]} layers of {scale_routing.experts} experts"
    if model.routers == 0:
        return f"{model.name}: a dense decoder, it has no experts"
    reason = ", since tokens that this control drops are still routed"
    return f"{model.name}: not recorded{reason if model.method == FASTV else ''}"


def _row(scale: int | str, scale_routing: Routing) -> list[str]:
    row_cells = []
    for token_kind in range(len(TOKENS)):
        measure_means = [
            scale_routing.undecided(token_kind).mean(),
            scale_routing.spread(token_kind).mean(),
            scale_routing.busiest(token_kind).max(),
        ]
        row_cells += [
            str(scale_routing.tokens[token_kind]),
            *(
                NOTHING if math.isnan(measure_mean) else f"{measure_mean:.2f}"
                for measure_mean in measure_means
            ),
        ]
    return [str(scale), *row_cells]


def routing_figure(summary: Summary) -> Figure | None:
    """Maps of layers x experts, a column per scale, visual tokens above and text below, of the
    first model with experts.
    """
    model_name = next(
        (
            model.name
            for model in summary.models
            if (model.name, summary.scales[-1]) in summary.routings
        ),
        None,
    )
    if model_name is None:
        return None
    scales = [scale for scale in summary.scales if (model_name, scale) in summary.routings]
    places = np.linspace(0, len(scales) - 1, min(len(scales), MOST_PANELS))
    drawn_scales = [scales[index] for index in sorted({round(place) for place in places})]
    figure = Figure(figsize=(1.6 + 2.1 * len(drawn_scales), 4.2), layout="constrained")
    axes = figure.subplots(2, len(drawn_scales), sharex=True, sharey=True, squeeze=False)
    drawn_routings = {scale: summary.routings[model_name, scale] for scale in drawn_scales}
    largest_load = max(
        float(np.nanmax(scale_routing.experts * scale_routing.load(token_kind)))
        for scale_routing in drawn_routings.values()
        for token_kind in (0, 1)
    )
    load_image = None
    for token_kind, kind_label in enumerate(TOKENS):
        for column, (scale, scale_routing) in enumerate(drawn_routings.items()):
            panel_axes = axes[token_kind][column]
            load_image = panel_axes.imshow(
                scale_routing.experts * scale_routing.load(token_kind),
                aspect="auto",
                cmap="cividis",
                vmin=0,
                vmax=largest_load,
            )
            panel_axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel_axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            panel_axes.tick_params(labelsize=8, colors=INK)
            token_word = "token" if scale == 1 else "tokens"
            panel_axes.set_title(
                f"{scale} {token_word}" if token_kind == 0 else "",
                fontsize=10,
                loc="left",
                fontweight="bold",
                color=INK,
            )
            panel_axes.set_ylabel(f"{kind_label} tokens\nlayer" if column == 0 else "", fontsize=9)
            panel_axes.set_xlabel("expert" if token_kind == 1 else "", fontsize=9)
    assert load_image is not None  # there is a scale, or there were no name
    colour_bar = figure.colorbar(load_image, ax=axes, shrink=0.9)
    colour_bar.set_label(f"load in fair shares (1 is balanced), {model_name}", fontsize=9)
    colour_bar.ax.tick_params(labelsize=8)
    return figure


def write_loads(summary: Summary) -> Path | None:
    """expert_load.csv: a row per model, scale, kind of token, layer and expert; None where
    nothing was recorded.
    """
    if not summary.routings:
        return None
    csv_text = io.StringIO()
    writer = csv.writer(csv_text, lineterminator="\n")
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
    for (model_name, scale), scale_routing in summary.routings.items():
        for token_kind, kind_label in enumerate(TOKENS):
            expert_loads, layer_entropies = (
                scale_routing.load(token_kind),
                scale_routing.undecided(token_kind),
            )
            for (layer_index, expert_index), choice_count in np.ndenumerate(
                scale_routing.choices[token_kind]
            ):
                csv_numbers = [
                    "" if math.isnan(x) else f"{x:.6g}"
                    for x in (layer_entropies[layer_index], expert_loads[layer_index, expert_index])
                ]
                csv_keys = [
                    model_name,
                    scale,
                    kind_label,
                    scale_routing.tokens[token_kind],
                    layer_index,
                ]
                writer.writerow(
                    [*csv_keys, csv_numbers[0], expert_index, choice_count, csv_numbers[1]]
                )
    csv_file = summary.run / "expert_load.csv"
    write_text(csv_file, csv_text.getvalue())
    return csv_file


def routing_data(summary: Summary) -> dict[str, dict[int | str, dict[str, list[list[float]]]]]:
    """model -> scale -> kind of token -> layers x experts, in fair shares, for the page; kinds
    without a token are left out.
    """
    page_routings: dict[str, dict[int | str, Any]] = {}
    for (model_name, scale), scale_routing in summary.routings.items():
        of_kinds = {
            kind_label: scale_routing.experts * scale_routing.load(token_kind)
            for token_kind, kind_label in enumerate(TOKENS)
            if scale_routing.tokens[token_kind]
        }
        page_routings.setdefault(model_name, {})[scale] = {
            kind_label: np.round(map_, 2).tolist() for kind_label, map_ in of_kinds.items()
        }
    return page_routings
