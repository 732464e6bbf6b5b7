"""The tables of cost: what the formulas say, what was measured, and beside it an estimate.

In: a `Summary`. Out: `Table`s.
"""

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost.roofline import accelerator, roofline
from m3.evaluation.report.number_format import engineering, milliseconds, three_digits
from m3.evaluation.report.table_formats import NOTHING, Table


def cost_table(summary: Summary) -> Table:
    """What the formulas say: one prompt."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        costs = [row for row in summary.costs if row.model == model.name]
        if costs:
            blocks[len(rows)] = f"{model.name}: {engineering(model.parameters)} parameters; " + (
                f"mean over {costs[0].prompts:,} prompts, of {costs[0].text_tokens} text tokens"
                if costs[0].prompts
                else f"one image and {costs[0].text_tokens} text tokens"
            )
        for row in costs:
            flops = [row.vision_flops, row.connector_flops, row.prefill_flops, row.token_flops]
            moved = [row.kv_cache_bytes, row.prefill_parameter_bytes, row.token_parameter_bytes]
            cells = [engineering(n, "FLOP") for n in flops] + [engineering(n, "B") for n in moved]
            most = engineering(row.most_first_token_flops, "FLOP") if row.prompts else NOTHING
            rows.append([str(row.scale), str(row.visual_tokens), *cells, most])
    header = ["tokens", "in the prompt", "tower", "connector", "prefill", "per token", "KV cache"]
    header += ["read, prefill", "read, token", "dearest prompt"]
    note = (
        "Dearest prompt: to its first token. Matrix products alone, two operations per "
        "multiply-add; of a mixture the active "
        "experts (m3/model/cost.py)."
    )
    return Table(
        "cost", "Computed cost of a prompt, the mean over those asked", header, rows, blocks, note
    )


def latency_table(summary: Summary, device: str) -> Table:
    """What was measured here, and beside it what the roofline of a named accelerator allows."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    chosen = accelerator(device)
    order = [model.name for model in summary.models]
    for row in sorted(
        summary.latencies, key=lambda row: (order.index(row.model), row.batch_size, row.scale)
    ):
        start = f"{row.model}, batch of {row.batch_size}; measured on {row.device}, {row.dtype}"
        if start not in blocks.values():
            blocks[len(rows)] = start
        cost = summary.cost(row.model, row.scale)
        estimate = None if cost is None or row.batch_size != 1 else roofline(cost, chosen)
        guesses = [NOTHING] * 2 if estimate is None else [estimate.first_token_s, estimate.token_s]
        rows.append(
            [
                str(row.scale),
                f"{milliseconds(row.first_token_s)}±{milliseconds(row.first_token_spread_s)}",
                f"{milliseconds(row.token_s)}±{milliseconds(row.token_spread_s)}",
                three_digits(row.tokens_per_s),
                three_digits(row.images_per_s),
                engineering(row.peak_bytes, "B"),
                *(guess if isinstance(guess, str) else milliseconds(guess) for guess in guesses),
            ]
        )
    header = ["tokens", "first token, ms", "token, ms", "tokens/s", "images/s", "peak memory"]
    header += ["ESTIMATE first, ms", "ESTIMATE token, ms"]
    note = (
        "Measured: median ± distance between the quartiles. Peak memory: allocated on a GPU, "
        "resident set of the process on a "
        f"CPU. Estimate: roofline in 16 bit of {chosen.name} ({chosen.source}), a lower bound; "
        "nothing was run on it."
    )
    return Table("latency", "Measured time and memory, and an estimate", header, rows, blocks, note)
