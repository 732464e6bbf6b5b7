"""Choices among budgets in a report: a table, and a figure of score against operations.

In: a `Summary` with choices (auto, auto:rule, 144+1) beside its fixed budgets. Out: a `Table` and a
figure; neither where the sweep made no choice.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from m3.evaluation.analysis.choices import ChoiceRow, choice_rows
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.budget_curve import COLOURS, FAINT, INK
from m3.evaluation.report.table_formats import NOTHING, Table, engineering
from m3.model.budgets.choice import DEFAULT_KEEP
from m3.model.budgets.mixture import mixture_shares

STAR = "*"
MARKS = {"oracle": "X", "by task": "P", "cascade": "v", "random": "d"}


def rows_of_models(summary: Summary) -> dict[str, list[ChoiceRow]]:
    """Model -> rows; without models that have none."""
    if not summary.choices:
        return {}
    names = [model.name for model in summary.models if summary.choices_of(model.name)]
    return {name: rows for name in names if (rows := choice_rows(summary, name))}


def choice_table(summary: Summary) -> Table:
    """Choices beside the best and the largest fixed budget."""
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for name, rows in rows_of_models(summary).items():
        block_titles[len(table_rows)] = name
        largest = summary.cost(name, summary.scales[-1])
        assert largest is not None  # choices are counted against it
        best = max(summary.curve(name).items(), key=lambda entry: entry[1].value)
        for scale in dict.fromkeys((best[0], summary.scales[-1])):
            table_rows.append(_fixed_cells(summary, name, scale, largest.first_token_flops))
        table_rows += [_choice_cells(row, largest.first_token_flops) for row in rows]
    note = (
        "Operations: up to the first token of the answer that counts, of the mean prompt; the "
        "router's and every look that was taken are in them. Random: the best mixture of fixed "
        "budgets at the same operations; paired bootstrap over images. Gap: share of the way from "
        "that mixture to the oracle over the front's budgets, both without what guessing gives. "
        f"cascade and by task keep {100 * DEFAULT_KEEP:g} % of the largest budget's score on one "
        "half of the images and are measured on the other."
    )
    header = ["choice", "mean", "operations", "of the largest, %", "visual tokens", "above random"]
    return Table(
        "choices",
        "Choices among budgets: mean over tasks, in per cent",
        [*header, "gap closed, %"],
        table_rows,
        block_titles,
        note,
    )


def _fixed_cells(summary: Summary, model: str, scale: int | str, largest: int) -> list[str]:
    cost, mean = summary.cost(model, scale), summary.mean(model, scale)
    assert cost is not None and mean is not None  # as the rows of choices have it
    flops = cost.first_token_flops
    numbers = [f"{mean.value:.1f}", engineering(flops, "FLOP"), f"{100 * flops / largest:.0f}"]
    return [f"fixed {scale}", *numbers, str(cost.visual_tokens), NOTHING, NOTHING]


def _choice_cells(row: ChoiceRow, largest: int) -> list[str]:
    above, gap = row.above_random, row.gap_closed
    above_text = gap_text = NOTHING
    if above is not None:
        above_text = f"{above.value:+.1f} [{above.low:+.1f}, {above.high:+.1f}]"
    if gap is not None:
        gap_text = f"{100 * gap.value:.0f} [{100 * gap.low:.0f}, {100 * gap.high:.0f}]"
    return [
        row.name,
        f"{row.score:.1f}",
        engineering(round(row.flops), "FLOP"),
        f"{100 * row.flops / largest:.0f}",
        f"{row.tokens:.1f} ± {row.token_spread:.1f}",
        above_text,
        gap_text,
    ]


def chosen_table(summary: Summary) -> Table:
    """Visual tokens that each choice took, task by task."""
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for name, rows in rows_of_models(summary).items():
        block_titles[len(table_rows)] = name
        for row in rows:
            tokens = row.task_tokens or {}
            cells = [tokens.get(task) for task in summary.averaged]
            texts = [
                NOTHING if cell is None else f"{cell[0]:.1f} ± {cell[1]:.1f}" for cell in cells
            ]
            table_rows.append([row.name, *texts])
    return Table(
        "chosen_tokens",
        "Visual tokens that each choice took: mean and standard deviation over documents",
        ["choice", *(summary.label(task) for task in summary.averaged)],
        table_rows,
        block_titles,
    )


def choice_figure(summary: Summary) -> Figure | None:
    """Score against operations: fixed budgets, their random mixtures, and each choice."""
    models = rows_of_models(summary)
    if not models:
        return None
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, rows) in enumerate(models.items()):
        _draw_model(axes, summary, name, rows, COLOURS[index % len(COLOURS)])
    axes.set_xscale("log")
    axes.set_xlabel("operations to the first token, MFLOP", fontsize=9)
    axes.set_ylabel("mean score, %", fontsize=9)
    axes.tick_params(labelsize=8.5, colors=INK)
    for spine_side in ("top", "right"):
        axes.spines[spine_side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _draw_model(
    axes: Axes, summary: Summary, name: str, rows: Sequence[ChoiceRow], colour: str
) -> None:
    curve = summary.curve(name)
    costs = {scale: summary.cost(name, scale) for scale in curve}
    points = [
        (cost.first_token_flops / 1e6, curve[scale].value, str(scale))
        for scale, cost in costs.items()
        if cost is not None
    ]
    x, y, _ = zip(*points, strict=True)
    axes.plot(x, y, "o", color=colour, markerfacecolor="white", label=f"{name}, fixed budgets")
    for place_x, place_y, words in points:
        axes.annotate(words, (place_x, place_y), (0, -11), textcoords="offset points", fontsize=7)
    steps = [min(x) * (max(x) / min(x)) ** (n / 60) for n in range(61)]
    mixed = [
        sum(share * score for share, score in zip(mixture_shares(step, x, y), y, strict=True))
        for step in steps
    ]
    axes.plot(steps, mixed, ":", color=FAINT, label="random mixtures of fixed budgets")
    automatic = sorted(
        (row.flops / 1e6, row.score)
        for row in rows
        if row.name.startswith("auto") and row.name != "auto:rule"
    )
    if automatic:
        axes.plot(
            *zip(*automatic, strict=True),
            "-",
            color=colour,
            marker=STAR,
            markersize=9,
            label=f"{name}, auto",
        )
    for row in rows:
        if row.name.startswith("auto") and row.name != "auto:rule":
            axes.annotate(
                row.name,
                (row.flops / 1e6, row.score),
                (0, 7),
                textcoords="offset points",
                fontsize=7.5,
            )
        elif row.name != "random":
            mark = MARKS.get(row.name, "s")
            axes.plot(row.flops / 1e6, row.score, mark, color=INK, label=row.name)
