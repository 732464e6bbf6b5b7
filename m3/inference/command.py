"""`m3 chat`: ask a checkpoint about images and videos, once with `--query`, else turn by turn.

m3 chat --model-path playground/m3-tiny --image-file photo.png --query "What colour is the
background?"
"""

import argparse
from collections.abc import Sequence
from functools import partial

from m3.command_line import CommandLine

NUMBER_FORMATS = ("float32", "bfloat16", "float16")
"""Rows of m3/inference/loading.py:DTYPES; a help text waits for no torch."""
QUANTISERS = {
    "bnb-4bit": "NF4, routed experts too",
    "bnb-8bit": "LLM.int8()",
    "torchao-int8": "int8 weights",
    "torchao-int4": "int4 weights",
}
"""Rows of m3/inference/quantisation.py:QUANTISATIONS, and what each is."""


def main(argv: list[str]) -> int:
    """Read the command line and chat."""
    arguments = read_arguments(argv)
    # torch is imported once the command line is known to be good
    from m3.inference.chat import answer_queries

    return answer_queries(arguments)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options by name; `visuals` are pairs of kind and file."""
    parser = CommandLine("m3 chat", __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_prompt(parser)
    _add_frames(parser)
    _add_weights(parser)
    _add_answer(parser)
    return parser.parse_args(list(argv))


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model, and of the prompt."""
    parser.add_argument(
        "--model-path", required=True, help="folder (or hub id) of an M3 checkpoint"
    )
    for visual_kind in ("image", "video"):
        parser.add_argument(
            f"--{visual_kind}-file",
            action="append",
            dest="visuals",
            type=partial(_named_file, visual_kind),
            default=[],
            metavar="FILE",
            help=f"{visual_kind} to show; may be repeated, in the order of the conversation",
        )
    parser.add_argument(
        "--query",
        help="ask this, print the answer, and end; `<image>` and `<video>` in it say "
        "where they stand",
    )
    parser.add_argument(
        "--matryoshka_vis_token_scale",
        metavar="SCALE",
        help="visual tokens per picture: 36; of the picture seen at 48 pixels: 36@48; over frames "
        "144+1 (the first at 144, the rest at 1) or 144x4+36@48; several to compare 1,9,36@48. "
        "Default: the largest trained",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="tiles, tokens and FLOPs of the prompt at each trained scale",
    )


def _add_frames(parser: argparse.ArgumentParser) -> None:
    """Add the options of the frames of videos."""
    frame_options = parser.add_argument_group("frames of videos (default: 8, spread evenly)")
    frame_options.add_argument("--num-frames", type=int, help="so many, spread evenly")
    frame_options.add_argument("--fps", type=float, help="so many per second")
    frame_options.add_argument(
        "--collage", action="store_true", help="six, as one picture of 3 x 2"
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options of the weights: device, type, quantisation, adapter."""
    weight_options = parser.add_argument_group("weights")
    weight_options.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is"
    )
    weight_options.add_argument(
        "--device-map", help="instead: `auto` spreads the layers over all devices"
    )
    weight_options.add_argument("--dtype", default="auto", choices=("auto", *NUMBER_FORMATS))
    exclusive_options = weight_options.add_mutually_exclusive_group()
    exclusive_options.add_argument(
        "--quantise",
        choices=tuple(QUANTISERS),
        help="; ".join(f"{name}: {text}" for name, text in QUANTISERS.items()),
    )
    exclusive_options.add_argument(
        "--load-4bit",
        dest="quantise",
        action="store_const",
        const="bnb-4bit",
        help="--quantise bnb-4bit",
    )
    exclusive_options.add_argument(
        "--load-8bit",
        dest="quantise",
        action="store_const",
        const="bnb-8bit",
        help="--quantise bnb-8bit",
    )
    weight_options.add_argument("--lora", metavar="DIR", help="a LoRA adapter")
    weight_options.add_argument(
        "--merge", action="store_true", help="add the adapter into the weights"
    )
    weight_options.add_argument(
        "--attention", help="as transformers names it, such as flash_attention_2"
    )


def _add_answer(parser: argparse.ArgumentParser) -> None:
    """Add the options of generation."""
    answer_options = parser.add_argument_group("answer")
    answer_options.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): greedy"
    )
    answer_options.add_argument("--top-p", type=float, default=1.0)
    answer_options.add_argument("--max-new-tokens", type=int, default=512)


def _named_file(visual_kind: str, file: str) -> tuple[str, str]:
    return visual_kind, file
