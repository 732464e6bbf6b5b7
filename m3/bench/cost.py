"""`m3 bench cost MODEL`: what every scale costs, by formula, as an estimate for an accelerator, and
measured here.

MODEL is a folder, a hub id, a config.json, or an architecture: one of m3/recipes/architectures by
name (llava_1_5_7b), or a YAML file like those. Without weights nothing is allocated, unless
`--measure` asks for random ones.
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from m3.bench.options import cost_options
from m3.config import near_match
from m3.evaluation.cost.latency import NO_DIFFERENCE, Measured, levels, measure
from m3.evaluation.cost.roofline import Roofline, roofline
from m3.evaluation.report.table_formats import engineering, milliseconds
from m3.files import check_model_name
from m3.hardware import accelerator, choose_device
from m3.inference.loading import DTYPES, load, read_config
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.cost import Cost, CostModel
from m3.nesting import read_ladder
from m3.text_table import align_columns
from m3.training.setup.resolved import read_architecture, shipped_architectures

Estimates = dict[tuple[int, int | str], Roofline]
"""By batch size and budget."""


def main(argv: list[str]) -> int:
    """Print a table per batch size; `--out` writes the same numbers, unrounded, as CSV."""
    arguments = cost_options().parse_args(argv)
    if arguments.text_tokens < 0:
        raise ValueError(f"--text-tokens {arguments.text_tokens}: expected a number from 0")
    config = model_config(arguments.model)
    scales = (
        parse_budgets(arguments.scales) if arguments.scales else list(config.nesting.trained_scales)
    )
    batches = parse_numbers("--batch-sizes", arguments.batch_sizes)
    cost_model = CostModel.from_config(config, DTYPES[arguments.dtype])
    costs = [
        cost_model.cost(scale, arguments.text_tokens, batch_size=batch)
        for batch in batches
        for scale in scales
    ]
    estimates = roofline_estimates(costs, arguments.accelerator)
    measurements: list[Measured] = []
    if arguments.measure:
        device = choose_device(arguments.device)
        model = build_model(arguments.model, config, arguments.dtype, device)
        measurements = measure(model, scales, arguments.text_tokens, batches)
    print(model_summary(cost_model, arguments.text_tokens, arguments.dtype))
    for batch in batches:
        print(
            "\n" + cost_table([c for c in costs if c.batch_size == batch], estimates, measurements)
        )
    for line in table_legend(arguments.accelerator, measurements):
        print(line)
    if arguments.out is not None:
        write_csv(arguments.out, costs, estimates, measurements)
        print(arguments.out)
    return 0


def model_config(model: str) -> M3Config:
    """The configuration of a checkpoint, or of an architecture that has no weights."""
    architectures = shipped_architectures()
    if Path(model).suffix in (".yaml", ".yml"):
        return read_architecture(Path(model))
    if model in architectures and not Path(model).exists():
        return read_architecture(architectures[model])
    try:
        check_model_name(model)
    except ValueError as error:
        raise ValueError(
            f"{error}, and no architecture. {near_match(model, architectures)}"
        ) from error
    return read_config(model)


def parse_numbers(option: str, option_value: str) -> list[int]:
    """Parse positive integers separated by commas, ascending."""
    texts = [text.strip() for text in option_value.split(",")]
    if not all(text.isdigit() and int(text) > 0 for text in texts):
        raise ValueError(
            f"{option} takes numbers with commas, such as 1,9,36; got {option_value!r}"
        )
    return sorted({int(text) for text in texts})


def parse_budgets(scales_text: str) -> list[int | str]:
    """Parse the budgets of `--scales`, ascending."""
    try:
        return [budget.setting for budget in read_ladder(scales_text.split(","))]
    except ValueError as error:
        raise ValueError(
            "--scales takes numbers with commas, such as 1,9,36, or tokens at a resolution, such "
            f"as 36@48; got {scales_text!r}"
        ) from error


def roofline_estimates(costs: Sequence[Cost], name: str) -> Estimates:
    """Estimate per (batch size, budget)."""
    return {(cost.batch_size, cost.scale): roofline(cost, accelerator(name)) for cost in costs}


def build_model(
    path: str, config: M3Config, dtype: str, device: torch.device
) -> M3ForConditionalGeneration:
    """Load the model, with random weights where `path` has none (as fast in a dense model)."""
    holds_weights = Path(path).is_dir() and list(Path(path).glob("*.safetensors"))
    is_architecture = path in shipped_architectures() and not Path(path).exists()
    if not holds_weights and (Path(path).exists() or is_architecture):
        with device:
            model = M3ForConditionalGeneration(config)
        # transformers wraps `to` without its types
        nn.Module.to(model, dtype=DTYPES[dtype])
        return model.eval()
    return load(path, device=str(device), dtype=dtype)[0]


def model_summary(cost_model: CostModel, text_tokens: int, dtype: str) -> str:
    parameter_count = cost_model.parameters
    weight_size = engineering(parameter_count * cost_model.bytes, "B")
    active_parameters = cost_model.decoder.active(cost_model.top_k) + cost_model.head
    return (
        f"{engineering(parameter_count)} parameters ({weight_size} in {dtype}), "
        f"{engineering(active_parameters)} of the decoder and head active per token; one image and "
        f"{text_tokens} text tokens per prompt"
    )


def cost_table(
    costs: Sequence[Cost], estimates: Estimates, measurements: Sequence[Measured]
) -> str:
    """Format a line per scale."""
    header = ["scale", "visual", "tower", "connector", "prefill", "per token", "KV cache"]
    header += ["read: prefill", "read: token", "est. first", "est. token", "est. tok/s"]
    if measurements:
        header += ["first token", "CPU time", f"{NO_DIFFERENCE} to", "token", "tok/s"]
        header += ["peak memory"]
    rows = [header]
    for cost in costs:
        flops = [cost.vision_flops, cost.connector_flops, cost.prefill_flops, cost.token_flops]
        read_bytes = [cost.kv_cache_bytes, cost.prefill_parameter_bytes, cost.token_parameter_bytes]
        row = [str(cost.scale), str(cost.visual_tokens)]
        row += [engineering(value, "FLOP") for value in flops]
        row += [engineering(value, "B") for value in read_bytes]
        estimate = estimates[cost.batch_size, cost.scale]
        row += [f"{milliseconds(value)} ms" for value in (estimate.first_token_s, estimate.token_s)]
        row += [f"{cost.batch_size / estimate.token_s:.4g}"]
        for measured in measurements:
            if (measured.batch_size, measured.scale) == (cost.batch_size, cost.scale):
                row += [
                    f"{milliseconds(seconds)}±{milliseconds(spread)} ms"
                    for seconds, spread in (
                        (measured.first_token_s, measured.first_token_spread_s),
                        (measured.token_s, measured.token_spread_s),
                    )
                ]
                row.insert(-1, f"{milliseconds(measured.first_token_cpu_s)} ms")
                row.insert(-1, _alike(measured, measurements))
                row += [f"{measured.tokens_per_s:.4g}", engineering(measured.peak_bytes, "B")]
        rows.append(row)
    return "\n".join([f"batch of {costs[0].batch_size}", *align_columns(rows)])


def _alike(measured: Measured, measurements: Sequence[Measured]) -> str:
    """The other budgets whose first token takes no measurably different time."""
    level = next(
        level
        for level in levels(
            (other.scale, other.first_token_s, other.first_token_spread_s)
            for other in measurements
            if other.batch_size == measured.batch_size
        )
        if measured.scale in level.scales
    )
    return ", ".join(str(scale) for scale in level.scales if scale != measured.scale) or "-"


def table_legend(accelerator_name: str, measurements: Sequence[Measured]) -> list[str]:
    chip = accelerator(accelerator_name)
    lines = [
        "",
        "Operations and bytes are those of the whole batch; experts read: those its tokens reach "
        "when balanced.",
    ]
    lines.append(
        f"est.: ESTIMATED lower bound in 16 bit for {chip.name}, {chip.flops / 1e12:g} TFLOP/s "
        f"and {chip.bandwidth / 1e12:g} TB/s ({chip.source}); nothing was run on it"
    )
    if measurements:
        lines.append(
            f"MEASURED on {measurements[0].device}, {measurements[0].dtype}, 10 % quantile of "
            "the repetitions ± distance between those of their four quarters; CPU time of all "
            "threads, to the first token"
        )
    return lines


def write_csv(
    path: Path, costs: Sequence[Cost], estimates: Estimates, measurements: Sequence[Measured]
) -> None:
    """Write a row per batch size and scale, with columns `estimated_*` and `measured_*`."""
    measured_rows = {(row.batch_size, row.scale): row for row in measurements}
    rows = []
    for cost in costs:
        key = (cost.batch_size, cost.scale)
        row = asdict(cost)
        row |= {f"estimated_{name}": value for name, value in asdict(estimates[key]).items()}
        if key in measured_rows:
            row |= {
                f"measured_{name}": value
                for name, value in asdict(measured_rows[key]).items()
                if name not in ("scale", "batch_size")
            }
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
