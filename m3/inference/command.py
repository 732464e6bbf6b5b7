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
from m3.inference.cost_table import explain
from m3.inference.loading import DTYPES, load
from m3.inference.quantisation import QUANTISATIONS
from m3.inference.repl import Visual, answer, run, show
from m3.processing.frame_scales import Schedule, split_alternatives
from m3.processing.video import Sampling


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model-path", required=True, help="folder (or hub id) of an M3 checkpoint"
    )
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}-file",
            action="append",
            dest="visuals",
            type=partial(Visual, kind),
            default=[],
            metavar="FILE",
            help=f"{kind} to show; may be repeated, in the order of the conversation",
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
    frames = parser.add_argument_group("frames of videos (default: 8, spread evenly)")
    frames.add_argument("--num-frames", type=int, help="so many, spread evenly")
    frames.add_argument("--fps", type=float, help="so many per second")
    frames.add_argument("--collage", action="store_true", help="six, as one picture of 3 x 2")
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, npu, xpu; default: the accelerator there is"
    )
    weights.add_argument("--device-map", help="instead: `auto` spreads the layers over all devices")
    weights.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    few = weights.add_mutually_exclusive_group()
    few.add_argument(
        "--quantise",
        choices=tuple(QUANTISATIONS),
        help="; ".join(f"{n}: {q.help}" for n, q in QUANTISATIONS.items()),
    )
    few.add_argument(
        "--load-4bit",
        dest="quantise",
        action="store_const",
        const="bnb-4bit",
        help="--quantise bnb-4bit",
    )
    few.add_argument(
        "--load-8bit",
        dest="quantise",
        action="store_const",
        const="bnb-8bit",
        help="--quantise bnb-8bit",
    )
    weights.add_argument("--lora", metavar="DIR", help="a LoRA adapter")
    weights.add_argument("--merge", action="store_true", help="add the adapter into the weights")
    weights.add_argument("--attention", help="as transformers names it, such as flash_attention_2")
    text = parser.add_argument_group("answer")
    text.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy")
    text.add_argument("--top-p", type=float, default=1.0)
    text.add_argument("--max-new-tokens", type=int, default=512)
    return parser.parse_args(list(argv))


def main(argv: list[str]) -> int:
    """Loads, shows, answers. 0, or a `ValueError` for a user's mistake."""
    arguments = parse(argv)
    generation = Generation(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    sampling = Sampling(
        num_frames=arguments.num_frames, fps=arguments.fps, collage=arguments.collage
    )
    given = arguments.matryoshka_vis_token_scale
    scales: list[Schedule | None] = [None] if given is None else [*split_alternatives(given)]
    _quieten()
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
        show(conversation, visual, sampling)
    if arguments.explain:
        chosen = (
            processor.trained_scales
            if given is None
            else [scale for scale in scales if scale is not None]
        )
        _write(explain(conversation, arguments.query or "", chosen) + "\n")
    if arguments.query is None and arguments.explain:
        return 0
    if arguments.query is not None:
        answer(conversation, arguments.query, scales, _write)
    else:
        run(conversation, scales, sampling, _lines(), _write)
    return 0


def _write(text: str) -> None:
    """At once: an answer is to be read while it is made."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines() -> Iterator[str]:
    """What is typed, after a prompt, or what comes through a pipe."""
    if sys.stdin.isatty():
        _write("Ask away; /help lists the commands.\n")
    while True:
        if sys.stdin.isatty():
            _write("> ")
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _quieten() -> None:
    """No progress bars and library chatter between question and answer; warnings stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
