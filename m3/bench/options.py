"""The options of every `m3 bench`, in a file without torch, so that a help text or a typo waits for
nothing. What a bench does is said by its own docstring, which is read from the file.
"""

import argparse
import ast
from importlib.util import find_spec
from pathlib import Path

from m3.command_line import CommandLine
from m3.hardware import ACCELERATORS
from m3.inference.command import NUMBER_FORMATS
from m3.processing.scale_policy import split_alternatives

SHAPE_NAMES = ("tiny", "real", "llava_7b")
"""Rows of m3/bench/shapes.py:SHAPES."""
STEP_FORMATS = ("float32", "bfloat16")
"""Rows of m3/bench/step.py:TOLERANCE."""


def describe_bench(module: str) -> str:
    """The docstring of a module that is not imported."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def new_parser(
    name: str, formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter
) -> CommandLine:
    """A parser without options yet."""
    return CommandLine(
        f"m3 bench {name}", describe_bench(f"m3.bench.{name}"), formatter_class=formatter_class
    )


def step_options() -> CommandLine:
    """Options of `m3 bench step`."""
    parser = new_parser("step", argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=SHAPE_NAMES, default="tiny", help="what is measured (m3/bench/shapes.py)"
    )
    parser.add_argument("--model", help="a checkpoint folder, for --shape tiny")
    parser.add_argument(
        "--matryoshka_vis_token_scale", help="scales of the step, by default those of the shape"
    )
    parser.add_argument(
        "--images", type=int, help="pictures in a step, by default as many as the shape says"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="questions kept of each picture; 0: all of them"
    )
    parser.add_argument("--pack-lengths", help="tokens of a row, one measurement for each")
    parser.add_argument("--towers", help="frozen, trained or both, separated by a comma")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype", choices=STEP_FORMATS, default="float32", help="type of weights and states"
    )
    return parser


def train_options() -> CommandLine:
    """Options of `m3 bench train`."""
    parser = new_parser("train", argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument(
        "--matryoshka_vis_token_scale", default="1,4,9,36,144", help="scales of the step"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=24,
        help="pictures; every third with all its questions, the rest one",
    )
    parser.add_argument("--pack-length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int)
    return parser


def sweep_options() -> CommandLine:
    """Options of `m3 bench sweep`."""
    parser = new_parser("sweep")
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument("--tasks", default="m3_tiny")
    parser.add_argument("--scales", default="1,4,9,36,144")
    parser.add_argument("--limit", type=int, default=50, help="documents of each task")
    parser.add_argument(
        "--include-path", type=Path, default=Path("lmms_eval_tasks"), help="folder with own tasks"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    return parser


def serve_options() -> CommandLine:
    """Options of `m3 bench serve`."""
    parser = new_parser("serve", argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="playground/m3-tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--pictures", type=int, default=8, help="of each of the embedded suite's families"
    )
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument(
        "--scales",
        type=split_alternatives,
        help="to ask at in 2., such as 1,36,144+1,auto; default: all trained",
    )
    parser.add_argument(
        "--against-largest",
        metavar="SCALE",
        help="the scale of 4., such as auto:0.95 or auto:rule; default: auto, where there is a router",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="of 4.; in each all questions are asked at both scales",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the server's settings")
    return parser


def cost_options() -> CommandLine:
    """Options of `m3 bench cost`."""
    parser = new_parser("cost")
    parser.add_argument("model", help="folder, hub id, config.json, or an architecture")
    parser.add_argument(
        "--scales",
        help="visual tokens per image, with commas, or tokens at a resolution in pixels, such as "
        "1,36,36@48; default: the trained scales",
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=30,
        help="of the prompt, besides the image (M3's Table 9: 30)",
    )
    parser.add_argument("--batch-sizes", default="1", help="prompts run together, with commas")
    parser.add_argument(
        "--dtype",
        choices=NUMBER_FORMATS,
        default="bfloat16",
        help="number format of weights and cache",
    )
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default="H100", help="what the estimate is for"
    )
    parser.add_argument("--measure", action="store_true", help="measure on this machine as well")
    parser.add_argument(
        "--device", help="to measure on; default: the accelerator that torch sees, else cpu"
    )
    parser.add_argument("--out", type=Path, help="CSV file")
    return parser


def convert_options() -> CommandLine:
    """Options of `m3 bench convert`."""
    parser = new_parser("convert")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument(
        "--shard-gb", type=float, default=1.0, help="largest file of weights written"
    )
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    return parser


OPTIONS = {
    "step": step_options,
    "train": train_options,
    "sweep": sweep_options,
    "serve": serve_options,
    "cost": cost_options,
    "convert": convert_options,
}
