"""`m3 chat`: ask a checkpoint about images and videos, once with `--query`, else turn by turn.

m3 chat --model-path playground/m3-tiny --image-file photo.png --query "What colour is the
background?"
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from m3.inference.conversation import Conversation, Generation
from m3.inference.cost_table import explain_costs
from m3.inference.loading import DTYPES, load
from m3.inference.quantisation import QUANTISATIONS
from m3.inference.repl import Visual, run_commands, show_visual, stream_answer
from m3.processing.frame_scales import Schedule, split_alternatives
from m3.processing.video import Sampling


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model-path", required=True, help="folder (or hub id) of an M3 checkpoint"
    )
    for visual_kind in ("image", "video"):
        parser.add_argument(
            f"--{visual_kind}-file",
            action="append",
            dest="visuals",
            type=partial(Visual, visual_kind),
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
        help="visual tokens per picture: 36; over frames 144+1 (the first at 144, the rest at 1) "
        "or 144x4+36; several to "
        "compare 1,9,36. Default: the largest trained",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="tiles, tokens and FLOPs of the prompt at each trained scale",
    )
    frame_options = parser.add_argument_group("frames of videos (default: 8, spread evenly)")
    frame_options.add_argument("--num-frames", type=int, help="so many, spread evenly")
    frame_options.add_argument("--fps", type=float, help="so many per second")
    frame_options.add_argument(
        "--collage", action="store_true", help="six, as one picture of 3 x 2"
    )
    weight_options = parser.add_argument_group("weights")
    weight_options.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is"
    )
    weight_options.add_argument(
        "--device-map", help="instead: `auto` spreads the layers over all devices"
    )
    weight_options.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    exclusive_options = weight_options.add_mutually_exclusive_group()
    exclusive_options.add_argument(
        "--quantise",
        choices=tuple(QUANTISATIONS),
        help="; ".join(f"{n}: {q.help}" for n, q in QUANTISATIONS.items()),
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
    answer_options = parser.add_argument_group("answer")
    answer_options.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): greedy"
    )
    answer_options.add_argument("--top-p", type=float, default=1.0)
    answer_options.add_argument("--max-new-tokens", type=int, default=512)
    return parser.parse_args(list(argv))


def main(argv: list[str]) -> int:
    """Load a model, show it the files and answer the query, or the lines of standard input."""
    arguments = parse_arguments(argv)
    generation = Generation(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    sampling = Sampling(
        num_frames=arguments.num_frames, fps=arguments.fps, collage=arguments.collage
    )
    scale_argument = arguments.matryoshka_vis_token_scale
    scales: list[Schedule | None] = (
        [None] if scale_argument is None else [*split_alternatives(scale_argument)]
    )
    _silence_libraries()
    model, processor = load(
        arguments.model_path,
        device=arguments.device,
        dtype=arguments.dtype,
        device_map=arguments.device_map,
        quantise=arguments.quantise,
        lora=arguments.lora,
        merge=arguments.merge,
        attention=arguments.attention,
    )
    conversation = Conversation(model, processor, generation)
    for visual in arguments.visuals:
        show_visual(conversation, visual, sampling)
    if arguments.explain:
        explained_scales = (
            processor.trained_scales
            if scale_argument is None
            else [scale for scale in scales if scale is not None]
        )
        _write(explain_costs(conversation, arguments.query or "", explained_scales) + "\n")
    if arguments.query is None and arguments.explain:
        return 0
    if arguments.query is not None:
        stream_answer(conversation, arguments.query, scales, _write)
    else:
        run_commands(conversation, scales, sampling, _input_lines(), _write)
    return 0


def _write(text: str) -> None:
    """Print and flush, so that an answer can be read while it is generated."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _input_lines() -> Iterator[str]:
    """Lines of standard input; a terminal gets a prompt before each."""
    if sys.stdin.isatty():
        _write("Ask away; /help lists the commands.\n")
    while True:
        if sys.stdin.isatty():
            _write("> ")
        typed_line = sys.stdin.readline()
        if not typed_line:
            return
        yield typed_line


def _silence_libraries() -> None:
    """Turn off progress bars and informative messages of libraries; warnings stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
