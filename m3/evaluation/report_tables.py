"""The tables of a report, from a `Summary`: scores, retention, oracle, calibration, differences, published, cost, latency."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.calibration_table import calibration_table
from m3.evaluation.compare import Change, Side, difference, shown_p
from m3.evaluation.frontier import knee, pareto_front, sufficient
from m3.evaluation.methods import OWN, get_method
from m3.evaluation.oracle import Oracle
from m3.evaluation.roofline import accelerator, roofline
from m3.evaluation.run_folder import ModelRow, write_text
from m3.evaluation.statistics import DRAWS, Difference, Mean
from m3.evaluation.summary import Summary, gflops
from m3.evaluation.tables import Table
from m3.evaluation.units import engineering, milliseconds

NOTHING = "–"


def report_tables(summary: Summary, device: str, changes: Sequence[Change] = ()) -> list[Table]:
    """Every table that the run has numbers for."""
    tables = [scores_table(summary), kept_table(summary), oracle_table(summary), calibration_table(summary)]
    tables += [differences_table(summary)]
    tables += [changes_table(changes)] if changes else []
    tables += [published_table(summary), cost_table(summary), latency_table(summary, device)]
    return [table for table in tables if table.rows]


def scores_table(summary: Summary) -> Table:
    """Scale x task in per cent with standard errors, a block per model, then the blind baselines."""
    names = [summary.family(task) for task in summary.tasks]
    has_mean = len(names) > 1
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        blocks[len(rows)] = f"{model.name}: {described(model)}"
        for scale in summary.scales:
            scores = [summary.score(model.name, task, scale) for task in summary.tasks]
            scores += [summary.mean(model.name, scale)] if has_mean else []
            rows.append([f"{scale}{'' if model.is_trained(scale) else '*'}", *(shown(score) for score in scores)])
    blind = []
    for name in ("chance", "majority"):
        values = [summary.baseline(name, task) for task in summary.tasks]
        values += [summary.baseline(name)] if has_mean else []
        if any(value is not None for value in values):
            blind.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    if blind:
        blocks[len(rows)] = "without looking"
    caption = "Scores by visual tokens per image, in per cent, with one standard error, clustered by image"
    note = "The mean weighs every task the same." if has_mean else ""
    return Table("scores", caption, ["tokens", *names, *(["mean"] if has_mean else [])], rows + blind, blocks, note)


def kept_table(summary: Summary) -> Table:
    """Share of the largest scale's score, and what stands out on each curve."""
    points = [
        (model.name, scale, cost.visual_tokens, mean.value)
        for model in summary.models
        for scale, mean in summary.curve(model.name).items()
        if (cost := summary.cost(model.name, scale)) is not None
    ]
    front = {points[i][:2] for i in pareto_front([(float(tokens), value) for _, _, tokens, value in points])}
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        curve = {scale: mean.value for scale, mean in summary.curve(model.name).items()}
        if len(curve) < 2:
            continue
        blocks[len(rows)] = model.name
        for scale, value in curve.items():
            kept = summary.retention(model.name, scale)
            notes = ["on the Pareto front"] if (model.name, scale) in front else []
            notes += ["knee"] if scale == knee(curve) else []
            notes += ["smallest that keeps 95 %"] if scale == sufficient(curve) else []
            interval = NOTHING if kept is None else f"{kept.value:.1f} [{kept.low:.1f}, {kept.high:.1f}]"
            rows.append([str(scale), f"{value:.1f}", interval, "; ".join(notes)])
    caption = "What each scale keeps of the largest: mean over tasks of the ratio of scores, in per cent"
    note = (
        f"95 % interval by bootstrap over images, {DRAWS:,} draws. Pareto front over all rows, by visual tokens and mean score; "
        "knee: farthest above the line between the curve's ends, tokens on a logarithmic axis."
    )
    return Table("retention", caption, ["tokens", "mean score", "kept", ""], rows, blocks, note)


def oracle_table(summary: Summary) -> Table:
    """A row per task and their mean, a block per model."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        found = {task: summary.oracle(model.name, task) for task in summary.tasks}
        known = {task: one for task, one in found.items() if one is not None}
        if not known:
            continue
        blocks[len(rows)] = model.name
        rows += [_oracle_row(summary.family(task), [one], summary.percent(task)) for task, one in known.items()]
        if len(known) > 1 and all(summary.percent(task) == 100 for task in known):
            rows.append(_oracle_row("mean", list(known.values()), 100.0))
    header = ["task", "samples", "largest", "tokens", "oracle", "tokens", "tokens as M3", "steady tokens"]
    header += ["largest, corrected", "oracle, corrected", "never right"]
    caption = "The oracle: the smallest scale that answers right, chosen sample by sample"
    note = (
        "Samples never right count at the largest scale; 'as M3': at the smallest, as published. Steady: the smallest scale "
        "from which on all larger are right too, with the accuracy of the largest. Corrected for chance, 0 is guessing: "
        "(score - c) / (1 - c), where c is the chance level, and 1 - (1 - chance)^scales for the oracle's many tries."
    )
    return Table("oracle", caption, header, rows, blocks, note)


def _oracle_row(name: str, parts: Sequence[Oracle], factor: float) -> list[str]:
    def mean(values: Sequence[float | None], scale: float) -> str:
        known = [value for value in values if value is not None]
        return f"{scale * sum(known) / len(known):.1f}" if len(known) == len(values) else NOTHING

    return [
        name,
        str(sum(part.n for part in parts)),
        mean([part.largest_score for part in parts], factor),
        mean([part.largest_tokens for part in parts], 1.0),
        mean([part.score for part in parts], factor),
        mean([part.tokens for part in parts], 1.0),
        mean([part.tokens_as_published for part in parts], 1.0),
        mean([part.steady_tokens for part in parts], 1.0),
        mean([part.largest_corrected for part in parts], 100.0),
        mean([part.corrected for part in parts], 100.0),
        mean([part.never / part.n for part in parts], 100.0) + " %",
    ]


def differences_table(summary: Summary) -> Table:
    """The first model against the others at each scale, and each of its scales against its largest."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    first = summary.models[0].name
    for other in summary.models[1:]:
        blocks[len(rows)] = f"{first} minus {other.name}"
        for scale in summary.scales:
            found = difference(Side(summary, first, scale), Side(summary, other.name, scale))
            rows += [[f"{scale}{'' if other.is_trained(scale) else '*'}", *_shown_difference(found)]] if found else []
    largest = summary.scales[-1]
    blocks[len(rows)] = f"{first}: each scale minus {largest} tokens"
    for scale in summary.scales[:-1]:
        found = difference(Side(summary, first, scale), Side(summary, first, largest))
        rows += [[str(scale), *_shown_difference(found)]] if found else []
    caption = "Differences of the mean score on the same documents"
    note = f"Points; paired bootstrap over images, {DRAWS:,} draws; p not corrected for the number of rows."
    return Table("differences", caption, ["tokens", "difference", "95 % interval", "p"], rows, blocks, note)


def _shown_difference(found: Difference) -> list[str]:
    return [f"{found.value:+.1f}", f"{found.low:+.1f} to {found.high:+.1f}", shown_p(found.p)]


def changes_table(changes: Sequence[Change]) -> Table:
    """Two runs side by side."""
    rows = [
        [
            change.model if change.model == change.other else f"{change.model} − {change.other}",
            change.task or "mean",
            str(change.scale),
            *_shown_difference(change.difference)[:2],
            shown_p(change.p),
            shown_p(change.p_holm),
            ("better" if change.difference.value > 0 else "worse") if change.is_significant else "",
        ]
        for change in changes
    ]
    header = ["model", "task", "tokens", "change", "95 % interval", "p", "p after Holm", ""]
    note = "Paired by document, images drawn with all their documents; Holm's correction among means, and among single tasks."
    return Table("comparison", "This run minus the other, on the same documents", header, rows, note=note)


def published_table(summary: Summary) -> Table:
    """What papers report for the run's tasks, a row per task and number of tokens, ours in front."""
    known = {task: found for task in summary.tasks if (found := summary.published(task))}
    theirs = list(dict.fromkeys(score.model for found in known.values() for score in found))
    ours = [model.name for model in summary.models]
    rows = []
    for task, found in known.items():
        tokens = sorted({score.tokens for score in found if score.tokens is not None} | set(summary.scales))
        for scale in tokens:
            mine = [summary.score(name, task, scale) for name in ours]
            values = [[s.value for s in found if s.model == name and s.tokens == scale] for name in theirs]
            shown_theirs = [" / ".join(f"{value:.1f}" for value in of_model) for of_model in values]
            shown_mine = ["" if score is None else shown(score) for score in mine]
            rows.append([f"{summary.family(task)}, {scale}", *shown_mine, *shown_theirs])
    papers = dict.fromkeys(f"{s.model}: {s.paper}, {s.table}" for found in known.values() for s in found)
    note = "Papers count tokens per image, per tile of an image (LLaVA-NeXT) or per video. " + "; ".join(papers)
    return Table("published", "Published scores beside ours", ["task, tokens", *ours, *theirs], rows, note=note)


def cost_table(summary: Summary) -> Table:
    """What the formulas say: one prompt."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    for model in summary.models:
        costs = [row for row in summary.costs if row.model == model.name]
        if costs:
            blocks[len(rows)] = (
                f"{model.name}: {engineering(model.parameters)} parameters; one image and {costs[0].text_tokens} text tokens"
            )
        for row in costs:
            flops = [row.vision_flops, row.connector_flops, row.prefill_flops, row.token_flops]
            moved = [row.kv_cache_bytes, row.prefill_parameter_bytes, row.token_parameter_bytes]
            cells = [engineering(n, "FLOP") for n in flops] + [engineering(n, "B") for n in moved]
            rows.append([str(row.scale), str(row.visual_tokens), *cells])
    header = ["tokens", "in the prompt", "tower", "connector", "prefill", "per token", "KV cache"]
    header += ["read, prefill", "read, token"]
    note = "Matrix products alone, two operations per multiply-add; of a mixture the active experts (m3/model/cost.py)."
    return Table("cost", "Computed cost of a prompt", header, rows, blocks, note)


def latency_table(summary: Summary, device: str) -> Table:
    """What was measured here, and beside it what the roofline of a named accelerator allows."""
    rows: list[list[str]] = []
    blocks: dict[int, str] = {}
    chosen = accelerator(device)
    order = [model.name for model in summary.models]
    for row in sorted(summary.latencies, key=lambda row: (order.index(row.model), row.batch_size, row.scale)):
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
                f"{row.tokens_per_s:.3g}",
                f"{row.images_per_s:.3g}",
                engineering(row.peak_bytes, "B"),
                *(guess if isinstance(guess, str) else milliseconds(guess) for guess in guesses),
            ]
        )
    header = ["tokens", "first token, ms", "token, ms", "tokens/s", "images/s", "peak memory"]
    header += ["ESTIMATE first, ms", "ESTIMATE token, ms"]
    note = (
        "Measured: median ± distance between the quartiles. Peak memory: allocated on a GPU, resident set of the process on a "
        f"CPU. Estimate: roofline in 16 bit of {chosen.name} ({chosen.source}), a lower bound; nothing was run on it."
    )
    return Table("latency", "Measured time and memory, and an estimate", header, rows, blocks, note)


def shown(score: Mean | None) -> str:
    """A score as 93.2±1.4."""
    if score is None:
        return "failed"
    return f"{score.value:.1f}" if math.isnan(score.stderr) else f"{score.value:.1f}±{score.stderr:.1f}"


def described(model: ModelRow) -> str:
    if model.method != OWN:
        return f"{get_method(model.method).about}, a control without training"
    scales = ", ".join(str(scale) for scale in model.trained_scales)
    return f"trained at {scales} visual tokens; * marks scales it was not trained at (plain pooling)"


def write_csv(summary: Summary) -> Path:
    """summary.csv: a row per model and scale, with every task, the mean, and the difference to the first model."""
    names = [name for task in summary.tasks for name in (summary.family(task), f"{summary.family(task)}_stderr")]
    header = ["model", "scale", "trained_at_scale", "visual_tokens", "first_token_gflops", "first_token_ms", *names]
    header += ["mean", "mean_stderr", "behind_first", "behind_first_low", "behind_first_high"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for model in summary.models:
        for scale in summary.scales:
            writer.writerow(_csv_row(summary, model, scale))
    path = summary.run / "summary.csv"
    write_text(path, text.getvalue())
    return path


def _csv_row(summary: Summary, model: ModelRow, scale: int) -> list[str]:
    cost, mean = summary.cost(model.name, scale), summary.mean(model.name, scale)
    latency = summary.latency(model.name, scale)
    first = summary.models[0]
    behind = None if model == first else difference(Side(summary, first.name, scale), Side(summary, model.name, scale))
    scores: list[float | None] = []
    for task in summary.tasks:
        score = summary.score(model.name, task, scale)
        scores += [None, None] if score is None else [score.value, score.stderr]
    numbers: Sequence[int | float | None] = [
        None if cost is None else cost.visual_tokens,
        None if cost is None else gflops(cost),
        None if latency is None else latency.first_token_s * 1e3,
        *scores,
        *((None, None) if mean is None else (mean.value, mean.stderr)),
        *((None,) * 3 if behind is None else (behind.value, behind.low, behind.high)),
    ]
    shown_numbers = ["" if number is None else f"{number:.6g}" for number in numbers]
    return [model.name, str(scale), str(model.is_trained(scale)), *shown_numbers]
