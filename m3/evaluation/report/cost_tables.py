"""The tables of cost: what the formulas say, what was measured, and beside it an estimate.

In: a `Summary`. Out: `Table`s.
"""

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.latency import NO_DIFFERENCE
from m3.evaluation.cost.roofline import roofline
from m3.evaluation.report.table_formats import (
    NOTHING,
    Table,
    engineering,
    milliseconds,
    three_digits,
)
from m3.evaluation.results.run_folder import CostRow
from m3.hardware import Accelerator, accelerator
from m3.nesting import read_budget


def cost_table(summary: Summary) -> Table:
    """Table of computed costs of one prompt."""
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    for model in summary.models:
        model_costs = [cost_row for cost_row in summary.costs if cost_row.model == model.name]
        if model_costs:
            block_titles[len(table_rows)] = (
                f"{model.name}: {engineering(model.parameters)} parameters; mean over "
                f"{model_costs[0].prompts:,} prompts, of {model_costs[0].text_tokens} text tokens"
            )
        table_rows += map(_cost_cells, model_costs)
    column_names = [
        "tokens",
        "in the prompt",
        "tower",
        "connector",
        "prefill",
        "per token",
        "KV cache",
    ]
    column_names += ["read, prefill", "read, token", "dearest prompt"]
    note = (
        "Dearest prompt: to its first token. Matrix products alone, two operations per "
        "multiply-add; of a mixture the active "
        "experts (m3/model/cost.py)."
    )
    return Table(
        "cost",
        "Computed cost of a prompt, the mean over those asked",
        column_names,
        table_rows,
        block_titles,
        note,
    )


def _cost_cells(cost_row: CostRow) -> list[str]:
    flop_counts = [
        cost_row.vision_flops,
        cost_row.connector_flops,
        cost_row.prefill_flops,
        cost_row.token_flops,
    ]
    byte_counts = [
        cost_row.kv_cache_bytes,
        cost_row.prefill_parameter_bytes,
        cost_row.token_parameter_bytes,
    ]
    return [
        str(cost_row.scale),
        str(cost_row.visual_tokens),
        *(engineering(flops, "FLOP") for flops in flop_counts),
        *(engineering(size, "B") for size in byte_counts),
        engineering(cost_row.most_first_token_flops, "FLOP"),
    ]


def latency_table(summary: Summary, device: str) -> Table:
    """Table of measured latencies, with the roofline of a named accelerator."""
    table_rows: list[list[str]] = []
    block_titles: dict[int, str] = {}
    named_accelerator = accelerator(device)
    model_order = [model.name for model in summary.models]
    fixed_rows = sorted(summary.latencies, key=lambda row: read_budget(row.scale))
    for latency_row in sorted(  # choices follow the budgets that they choose among
        [*fixed_rows, *summary.choice_latencies],
        key=lambda row: (model_order.index(row.model), row.batch_size),
    ):
        block_title = (
            f"{latency_row.model}, batch of {latency_row.batch_size}; measured on "
            f"{latency_row.device}, {latency_row.dtype}"
        )
        if block_title not in block_titles.values():
            block_titles[len(table_rows)] = block_title
        cost = summary.cost(latency_row.model, latency_row.scale)
        alike = summary.alike(latency_row.model, latency_row.scale, latency_row.batch_size)
        estimate = (
            None
            if cost is None or latency_row.batch_size != 1
            else roofline(cost, named_accelerator)
        )
        estimate_cells = (
            [NOTHING] * 2
            if estimate is None
            else [milliseconds(estimate.first_token_s), milliseconds(estimate.token_s)]
        )
        table_rows.append(
            [
                str(latency_row.scale),
                f"{milliseconds(latency_row.first_token_s)}±{milliseconds(latency_row.first_token_spread_s)}",
                milliseconds(latency_row.first_token_cpu_s),
                ", ".join(map(str, alike)) or NOTHING,
                f"{milliseconds(latency_row.token_s)}±{milliseconds(latency_row.token_spread_s)}",
                three_digits(latency_row.tokens_per_s),
                three_digits(latency_row.images_per_s),
                engineering(latency_row.peak_bytes, "B"),
                *estimate_cells,
            ]
        )
    column_names = ["tokens", "first token, ms", "CPU time, ms", f"{NO_DIFFERENCE} to"]
    column_names += ["token, ms", "tokens/s", "images/s", "peak memory"]
    column_names += ["ESTIMATE first, ms", "ESTIMATE token, ms"]
    return Table(
        "latency",
        "Measured time and memory, and an estimate",
        column_names,
        table_rows,
        block_titles,
        _latency_note(named_accelerator),
    )


def _latency_note(named_accelerator: Accelerator) -> str:
    return (
        "Measured: 10 % quantile of the repetitions ± the distance between those of their four "
        f"quarters. Budgets whose first tokens are nearer than that have {NO_DIFFERENCE}. CPU "
        "time: of all threads of the process, to the first token. Peak memory: allocated on a GPU, "
        "resident set of the process on a CPU. Estimate: roofline in 16 bit of "
        f"{named_accelerator.name} ({named_accelerator.source}), a lower bound; nothing was run on "
        "it."
    )
