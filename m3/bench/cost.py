"""`m3 bench cost MODEL`: what every scale costs, by formula, as an estimate for an accelerator, and
measured here.

MODEL is a folder, a hub id or a config.json; without weights nothing is allocated, unless
`--measure` asks for random ones.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from m3.evaluation.cost.latency import Measured, measure
from m3.evaluation.cost.roofline import ACCELERATORS, Roofline, accelerator, roofline
from m3.evaluation.report.number_format import engineering, milliseconds
from m3.inference.loading import read_config
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.cost import Cost, CostModel

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str]) -> int:
    """Prints a table per batch size; `--out` writes the same numbers, unrounded, as CSV."""
    parser = argparse.ArgumentParser(prog="m3 bench cost", description=__doc__)
    parser.add_argument("model", help="folder, hub id or config.json")
    parser.add_argument(
        "--scales", help="visual tokens per image, with commas; default: the trained scales"
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=30,
        help="of the prompt, besides the image (M3's Table 9: 30)",
    )
    parser.add_argument("--batch-sizes", default="1", help="prompts run together, with commas")
    parser.add_argument(
        "--dtype", choices=FORMATS, default="bfloat16", help="number format of weights and cache"
    )
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default="H100", help="what the estimate is for"
    )
    parser.add_argument("--measure", action="store_true", help="measure on this machine as well")
    parser.add_argument(
        "--device", help="to measure on; default: cuda where there is one, else cpu"
    )
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args(argv)
    if arguments.text_tokens < 0:
        raise ValueError(f"--text-tokens {arguments.text_tokens}: expected a number from 0")
    config = read_config(arguments.model)
    scales = (
        numbers("--scales", arguments.scales)
        if arguments.scales
        else list(config.nesting.trained_scales)
    )
    batches = numbers("--batch-sizes", arguments.batch_sizes)
    formulas = CostModel.from_config(config, FORMATS[arguments.dtype])
    costs = [
        formulas.cost(scale, arguments.text_tokens, batch_size=batch)
        for batch in batches
        for scale in scales
    ]
    estimates = estimated(costs, arguments.accelerator)
    measured_rows: list[Measured] = []
    if arguments.measure:
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = build(arguments.model, config, arguments.dtype, device)
        measured_rows = measure(model, scales, arguments.text_tokens, batches)
    print(described(formulas, arguments.text_tokens, arguments.dtype))
    for batch in batches:
        print("\n" + table([c for c in costs if c.batch_size == batch], estimates, measured_rows))
    for legend_line in legend(arguments.accelerator, measured_rows):
        print(legend_line)
    if arguments.out is not None:
        write(arguments.out, costs, estimates, measured_rows)
        print(arguments.out)
    return 0


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas, ascending."""
    number_texts = [number_text.strip() for number_text in text.split(",")]
    if not all(number_text.isdigit() and int(number_text) > 0 for number_text in number_texts):
        raise ValueError(f"{option} takes numbers with commas, such as 1,9,36; got {text!r}")
    return sorted({int(number_text) for number_text in number_texts})


def estimated(costs: Sequence[Cost], name: str) -> dict[tuple[int, int], Roofline]:
    """(batch size, scale) -> estimate."""
    return {(cost.batch_size, cost.scale): roofline(cost, accelerator(name)) for cost in costs}


def build(name: str, config: M3Config, dtype: str, device: str) -> M3ForConditionalGeneration:
    """The model with its weights where `name` has any, else with random ones: that changes no
    time of a dense model.
    """
    if Path(name).is_file() or (Path(name).is_dir() and not list(Path(name).glob("*.safetensors"))):
        with torch.device(device):
            model = M3ForConditionalGeneration(config)
    else:
        model = M3ForConditionalGeneration.from_pretrained(name)
    # transformers wraps `to` without its types
    nn.Module.to(model, device=device, dtype=FORMATS[dtype])
    return model.eval()


def described(formulas: CostModel, text_tokens: int, dtype: str) -> str:
    total = formulas.parameters
    active = formulas.decoder.active(formulas.top_k) + formulas.head
    return (
        f"{engineering(total)} parameters ({engineering(total * formulas.bytes, 'B')} in {dtype}), "
        f"{engineering(active)} of the decoder and head active per token; one image and "
        f"{text_tokens} text tokens per prompt"
    )


def table(
    costs: Sequence[Cost], estimates: dict[tuple[int, int], Roofline], found: Sequence[Measured]
) -> str:
    """A line per scale."""
    header = [
        "scale",
        "visual",
        "tower",
        "connector",
        "prefill",
        "per token",
        "KV cache",
        "read: prefill",
        "read: token",
    ]
    header += ["est. first", "est. token", "est. tok/s"]
    header += ["first token", "token", "tok/s", "peak memory"] if found else []
    table_rows = [header]
    for cost in costs:
        flops = [cost.vision_flops, cost.connector_flops, cost.prefill_flops, cost.token_flops]
        moved = [cost.kv_cache_bytes, cost.prefill_parameter_bytes, cost.token_parameter_bytes]
        table_row = [str(cost.scale), str(cost.visual_tokens)]
        table_row += [engineering(cost_number, "FLOP") for cost_number in flops] + [
            engineering(cost_number, "B") for cost_number in moved
        ]
        guess = estimates[cost.batch_size, cost.scale]
        table_row += [
            f"{milliseconds(guess.first_token_s)} ms",
            f"{milliseconds(guess.token_s)} ms",
        ]
        table_row += [f"{cost.batch_size / guess.token_s:.4g}"]
        for measured_row in (
            m for m in found if (m.batch_size, m.scale) == (cost.batch_size, cost.scale)
        ):
            table_row += [
                f"{milliseconds(measured_row.first_token_s)}±{milliseconds(measured_row.first_token_spread_s)} ms"
            ]
            table_row += [
                f"{milliseconds(measured_row.token_s)}±{milliseconds(measured_row.token_spread_s)} ms"
            ]
            table_row += [
                f"{measured_row.tokens_per_s:.4g}",
                engineering(measured_row.peak_bytes, "B"),
            ]
        table_rows.append(table_row)
    widths = [max(map(len, column)) for column in zip(*table_rows, strict=True)]
    text_lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(table_row, widths, strict=True))
        for table_row in table_rows
    ]
    return "\n".join([f"batch of {costs[0].batch_size}", *text_lines])


def legend(name: str, found: Sequence[Measured]) -> list[str]:
    device = accelerator(name)
    legend_lines = [
        "",
        "Operations and bytes are those of the whole batch; experts read: those its tokens reach "
        "when balanced.",
    ]
    legend_lines.append(
        f"est.: ESTIMATED lower bound in 16 bit for {device.name}, {device.flops / 1e12:g} TFLOP/s "
        "and "
        f"{device.bandwidth / 1e12:g} TB/s ({device.source}); nothing was run on it"
    )
    if found:
        legend_lines.append(
            f"MEASURED on {found[0].device}, {found[0].dtype}, median ± distance between "
            "the quartiles"
        )
    return legend_lines


def write(
    path: Path,
    costs: Sequence[Cost],
    estimates: dict[tuple[int, int], Roofline],
    found: Sequence[Measured],
) -> None:
    """A row per batch size and scale; estimates and measurements in columns that say which they
    are.
    """
    measured_rows = {(csv_row.batch_size, csv_row.scale): csv_row for csv_row in found}
    csv_rows = []
    for cost in costs:
        cost_key = (cost.batch_size, cost.scale)
        csv_row = asdict(cost)
        csv_row |= {
            f"estimated_{estimate_name}": estimate_value
            for estimate_name, estimate_value in asdict(estimates[cost_key]).items()
        }
        if cost_key in measured_rows:
            csv_row |= {
                f"measured_{estimate_name}": v
                for estimate_name, v in asdict(measured_rows[cost_key]).items()
                if estimate_name not in ("scale", "batch_size")
            }
        csv_rows.append(csv_row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as open_file:
        writer = csv.DictWriter(open_file, list(csv_rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(csv_rows)
