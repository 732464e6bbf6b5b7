"""report.html: one page that holds everything it shows and asks no network for anything.

In: a `Summary` and its tables. Out: the page: report.html.jinja with report.css and report.js
written into it, and the numbers of the charts and the samples as JSON.
"""

import base64
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from m3.evaluation.analysis.metric_kind import ACCURACY
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.axes import COST_AXES
from m3.evaluation.cost.latency import NO_DIFFERENCE
from m3.evaluation.report.expert_load import routing_data
from m3.evaluation.report.finding import finding
from m3.evaluation.report.table_formats import Table
from m3.evaluation.report.token_grids import drawn, grid_note, is_on_grid
from m3.evaluation.results.run_folder import Example, ModelRow
from m3.nesting import read_budget, resolutions

OPENED = ("scores", "retention", "differences")
"""Tables that come first and unfolded."""
SHAPES = "■▲◆▼"
"""Marks of resolutions in report.js, in turn."""


def page(summary: Summary, tables: Sequence[Table]) -> str:
    """The whole page. Everything that comes from data is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # a browser reads no NaN; budgets are numbers and texts, which have no common order
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    templates = files("m3.evaluation").joinpath("templates")
    css_text, js_text, html_text = (
        templates.joinpath(f"report.{file_kind}").read_text("utf-8")
        for file_kind in ("css", "js", "html.jinja")
    )
    return environment.from_string(html_text).render(
        summary=summary,
        tables=sorted(tables, key=lambda table: table.name not in OPENED),
        data=page_data(summary),
        css=Markup(css_text),
        js=Markup(js_text),
        experts_js=Markup(templates.joinpath("experts.js").read_text("utf-8")),
        samples_js=Markup(templates.joinpath("samples.js").read_text("utf-8")),
        lead=finding(summary),
        opened=OPENED,
        marks_note=marks_note(summary),
        failed=[cell for cell in summary.cells if cell.status == "failed"],
    )


def marks_note(summary: Summary) -> str:
    """What the shapes of the marks mean; nothing where every budget sees one resolution."""
    sides = resolutions(map(read_budget, summary.scales))
    if len(sides) < 2:
        return ""
    named = [side for side in sides if side is not None]
    shapes = [f"{SHAPES[i % len(SHAPES)]} {side} pixels" for i, side in enumerate(named)]
    shapes += ["● the largest"] if None in sides else []
    return f"Marks, by resolution: {', '.join(shapes)}. Thick: the Pareto front over all of them."


def page_data(summary: Summary) -> dict[str, Any]:
    """The data that report.js reads."""
    published = [
        {"model": s.label, "task": task, "tokens": s.tokens, "per": s.tokens_per, "value": s.value, "paper": s.paper,
         "table": s.table}
        for task in summary.tasks
        for s in summary.published(task)
    ]  # fmt: skip
    return {
        "scales": list(summary.scales),
        "choices": list(summary.choices),
        "axes": [
            {"key": key, "label": axis.label, "isMeasured": axis.is_measured}
            for key, axis in COST_AXES.items()
        ],
        "noDifference": NO_DIFFERENCE,
        "averaged": str(ACCURACY),
        "tasks": [
            {"id": task, "name": summary.label(task), "kind": str(summary.kinds[task])}
            | {
                baseline_name: summary.baseline(baseline_name, task)
                for baseline_name in ("chance", "majority")
            }
            for task in summary.tasks
        ],
        "models": [
            {
                "name": model.name,
                "trained": [scale for scale in summary.scales if model.is_trained(scale)],
                "gridNote": grid_note(model),
                "isOnGrid": is_on_grid(model),
            }
            for model in summary.models
        ],
        "scores": {
            model.name: {task: _curve(summary, model, task) for task in summary.tasks}
            for model in summary.models
        },
        "costs": {model.name: _costs(summary, model) for model in summary.models},
        "taskCosts": {
            model.name: {task: _costs(summary, model, task) for task in summary.tasks}
            for model in summary.models
        }
        if summary.task_costs
        else None,
        "published": published,
        "publishedModels": list(dict.fromkeys(row["model"] for row in published)),
        "needs": _needs(summary),
        "experts": routing_data(summary),
        "samples": _samples(summary),
    }


def _curve(summary: Summary, model: ModelRow, task: str) -> dict[int | str, list[float | None]]:
    scores = summary.curve(model.name, task)
    chosen = {choice: summary.score(model.name, task, choice) for choice in summary.choices}
    scores |= {choice: score for choice, score in chosen.items() if score is not None}
    return {
        scale: [mean.value, None if math.isnan(mean.stderr) else mean.stderr]
        for scale, mean in scores.items()
    }


def _costs(
    summary: Summary, model: ModelRow, task: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """Costs of all prompts, or of a task's; times are those of one mean prompt for every task."""
    scale_costs = {}
    for scale in [*summary.scales, *summary.choices]:
        cost, measured_latency = (
            summary.cost(model.name, scale, task),
            summary.level_latency(model.name, scale),
        )
        if cost is not None:
            scale_costs[scale] = {
                "prompts": cost.prompts,
                "spread": None
                if measured_latency is None
                else measured_latency.first_token_spread_s * 1e3,
                "alike": [str(other) for other in summary.alike(model.name, scale)],
                **{key: axis.value(cost, measured_latency) for key, axis in COST_AXES.items()},
            }
    return scale_costs


def _needs(summary: Summary) -> dict[str, dict[str, list[tuple[int | str, int]]]]:
    """model -> task -> (scale, samples), the never right at the end."""
    needed_scales: dict[str, dict[str, list[tuple[int | str, int]]]] = {}
    for model in summary.models:
        for task in summary.tasks:
            oracle = summary.oracle(model.name, task)
            if oracle is not None:
                needed_scales.setdefault(model.name, {})[task] = [
                    *oracle.needs.items(),
                    ("never", oracle.never),
                ]
    return needed_scales


def _samples(summary: Summary) -> list[dict[str, Any]]:
    """Samples whose score depends on the budget before the others, the tasks in turn."""
    samples = [_sample(summary, example) for example in summary.examples]
    turns: dict[tuple[str, bool], int] = {}
    order: list[tuple[bool, int, int]] = []
    for index, sample in enumerate(samples):
        is_alike = not _depends_on_budget(sample)
        turn = turns.get((sample["task"], is_alike), 0)
        turns[sample["task"], is_alike] = turn + 1
        order.append((is_alike, turn, index))
    return [samples[index] for _, _, index in sorted(order)]


def _depends_on_budget(sample: dict[str, Any]) -> bool:
    """Tell whether a model is right at a budget and wrong at another."""
    return any(
        {True, False} <= {reply["right"] for reply in replies.values()}
        for replies in sample["replies"].values()
    )


def _sample(summary: Summary, example: Example) -> dict[str, Any]:
    encoded_image = base64.b64encode(
        (summary.run / "examples" / example.image).read_bytes()
    ).decode()
    replies: dict[str, dict[int | str, dict[str, Any]]] = {}
    for model in summary.models:
        for scale in summary.scales:
            reply = summary.reply(example, model.name, scale)
            if reply is not None:
                replies.setdefault(model.name, {})[scale] = {
                    "text": reply.text,
                    "right": reply.is_right,
                }
    return {
        "task": example.task,
        "question": example.question,
        "target": example.target,
        "image": f"data:image/{Path(example.image).suffix[1:]};base64,{encoded_image}",
        "replies": replies,
        "grids": {model.name: drawn(model, example, summary.scales) for model in summary.models},
    }
