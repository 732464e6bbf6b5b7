"""`m3 report RUN`: the table, the chart and one page of a sweep, from what is on the disk alone.

In: a run folder that `m3 sweep --out` wrote. Out: summary.csv, accuracy_vs_cost.png and report.html in it; the table on
the screen. The page holds everything it shows: it makes no request.
"""

import argparse
import base64
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from m3.evaluation.charts import COLOURS, draw_png, draw_svg, panels
from m3.evaluation.run_folder import Example, ModelRow, write_text
from m3.evaluation.statistics import Mean
from m3.evaluation.summary import Summary, gflops
from m3.evaluation.units import engineering, milliseconds
from m3.nesting.grid_pool import as_rectangle

THUMBNAIL = 100
"""Side of an example's drawing, in its own units."""


def main(argv: list[str]) -> int:
    """Writes the report of a finished (or half-finished) sweep and prints its table."""
    parser = argparse.ArgumentParser(
        prog="m3 report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder given to m3 sweep --out")
    summary = Summary.read(parser.parse_args(argv).run)
    written = [summary.write_csv(), summary.run / "accuracy_vs_cost.png", summary.run / "report.html"]
    draw_png(summary, written[1])
    write_text(written[2], page(summary))
    print("\n".join([table(summary), "", *(str(path) for path in written)]))  # noqa: T201 (the table is the output)
    return 0


def table(summary: Summary) -> str:
    """Scale x task in percent with standard errors, a block per model, then the blind baselines."""
    names = [summary.family(task) for task in summary.tasks]
    rows: list[list[str]] = [["tokens", *names, *(["mean"] if len(names) > 1 else [])]]
    blocks: dict[int, str] = {}
    for model in summary.models:
        blocks[len(rows)] = f"{model.name}: {described(model)}"
        for scale in summary.scales:
            scores = [summary.score(model.name, task, scale) for task in summary.tasks]
            mean = [summary.mean(model.name, scale)] if len(names) > 1 else []
            rows.append(
                [f"{scale}{'' if model.is_trained(scale) else '*'}", *(shown(score) for score in [*scores, *mean])]
            )
    blocks[len(rows)] = "without looking"
    for name in ("chance", "majority"):
        values = [summary.baseline(name, task) for task in summary.tasks]
        values += [summary.baseline(name)] if len(names) > 1 else []
        if any(value is not None for value in values):
            rows.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        if index in blocks:
            lines += ["", blocks[index]]
        lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if len(rows) in blocks:
        lines += []
    return "\n".join(lines)


def shown(score: Mean | None) -> str:
    """A score as 93.2±1.4."""
    if score is None:
        return "failed"
    return f"{score.value:.1f}" if math.isnan(score.stderr) else f"{score.value:.1f}±{score.stderr:.1f}"


def described(model: ModelRow) -> str:
    scales = ", ".join(str(scale) for scale in model.trained_scales)
    return f"trained at {scales} visual tokens; * marks scales it was not trained at (plain pooling)"


def page(summary: Summary) -> str:
    """report.html."""
    means, tasks = panels(summary)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"engineering": engineering, "milliseconds": milliseconds}
    template = environment.from_string(
        files("m3.evaluation").joinpath("templates/report.html.jinja").read_text("utf-8")
    )
    return template.render(
        summary=summary,
        colours=COLOURS,
        shown=shown,
        described=described,
        gflops=gflops,
        lead=headline(summary),
        mean_charts=[Markup(draw_svg(summary, panel)) for panel in means],
        task_charts=[Markup(draw_svg(summary, panel)) for panel in tasks],
        differences=differences(summary),
        examples=[shown_example(summary, number, example) for number, example in enumerate(summary.examples)],
        failed=[cell for cell in summary.cells if cell.status == "failed"],
    )


def headline(summary: Summary) -> str:
    """The first model's best and cheapest scales in one sentence."""
    model = summary.models[0].name
    scores = {scale: mean for scale in summary.scales if (mean := summary.mean(model, scale)) is not None}
    if len(scores) < 2:
        return ""
    low, high = min(scores), max(scores)
    return (
        f"{model} scores {scores[high].value:.1f} at {high} visual tokens per image and {scores[low].value:.1f} at {low}, "
        f"as the mean of {len(summary.tasks)} task{'s' * (len(summary.tasks) > 1)}."
    )


def differences(summary: Summary) -> list[dict[str, Any]]:
    """The first model against each other one, per scale."""
    found = []
    for model in summary.models[1:]:
        for scale in summary.scales:
            difference = summary.difference(scale, model.name)
            if difference is not None:
                found.append({"model": model, "scale": scale, "difference": difference})
    return found


def shown_example(summary: Summary, number: int, example: Example) -> dict[str, Any]:
    """What the page says of an example: the image, the grid of each scale, the replies of each model."""
    content = base64.b64encode((summary.run / "examples" / example.image).read_bytes()).decode()
    scales = []
    for scale in summary.scales:
        replies = [(model, summary.reply(example, model.name, scale)) for model in summary.models]
        scales.append({"scale": scale, "lines": grid_lines(summary.models[0], scale), "replies": replies})
    return {
        "id": f"example-{number}",
        "family": summary.family(example.task),
        "question": example.question,
        "target": example.target,
        "image": f"data:image/png;base64,{content}",
        "scales": scales,
    }


def grid_lines(model: ModelRow, scale: int) -> list[tuple[float, float, float, float]]:
    """Lines (x1, y1, x2, y2) between the cells that pooling averages, on a square of `THUMBNAIL`; none for other nestings."""
    if model.nesting != "grid_pool":
        return []
    rows, columns = (model.grid[0], model.grid[1]) if len(model.grid) == 2 else as_rectangle(model.grid[0])
    if scale == 1:
        return []
    side = math.isqrt(rows * columns // scale)
    across, down = columns // side, rows // side
    upright = [(THUMBNAIL * i / across, 0.0, THUMBNAIL * i / across, float(THUMBNAIL)) for i in range(1, across)]
    return upright + [(0.0, THUMBNAIL * i / down, float(THUMBNAIL), THUMBNAIL * i / down) for i in range(1, down)]
