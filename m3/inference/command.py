"""`m3 chat`: ask a checkpoint about images and videos, once with `--query`, else turn by turn.

m3 chat --model-path playground/m3-tiny --image-file photo.png --query "What colour is the
background?"
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from m3.inference.conversation import Conversation, Generation
from m3.inference.cost_table import explain_costs
from m3.inference.loading import DTYPES, load
from m3.inference.quantisation import QUANTISATIONS
from m3.inference.repl import Visual, run_commands, show_visual, stream_answer
from m3.processing.scale_policy import ScaleSetting, split_alternatives
from m3.processing.video import Sampling


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Command line of `m3 chat`.

    `scales`: to answer at, empty for the largest trained one. The last seven are those of
    `m3.inference.load`.
    """

    model_path: str
    visuals: tuple[Visual, ...]
    query: str | None
    scales: tuple[ScaleSetting, ...]
    explain: bool
    sampling: Sampling
    generation: Generation
    device: str | None
    device_map: str | None
    dtype: str
    quantise: str | None
    lora: str | None
    merge: bool
    attention: str | None


def parse_options(argv: Sequence[str]) -> ChatOptions:
    """Read the command line; a `ValueError` for a scale, frames or settings of generation that
    make no sense.
    """
    parser = argparse.ArgumentParser(
        prog="m3 chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_prompt(parser)
    _add_frames(parser)
    _add_weights(parser)
    _add_answer(parser)
    arguments = parser.parse_args(list(argv))
    scale_text = arguments.matryoshka_vis_token_scale
    return ChatOptions(
        model_path=arguments.model_path,
        visuals=tuple(arguments.visuals),
        query=arguments.query,
        generation=Generation(arguments.max_new_tokens, arguments.temperature, arguments.top_p),
        sampling=Sampling(
            num_frames=arguments.num_frames, fps=arguments.fps, collage=arguments.collage
        ),
        scales=() if scale_text is None else tuple(split_alternatives(scale_text)),
        explain=arguments.explain,
        device=arguments.device,
        device_map=arguments.device_map,
        dtype=arguments.dtype,
        quantise=arguments.quantise,
        lora=arguments.lora,
        merge=arguments.merge,
        attention=arguments.attention,
    )


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


def _add_answer(parser: argparse.ArgumentParser) -> None:
    """Add the options of generation."""
    answer_options = parser.add_argument_group("answer")
    answer_options.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): greedy"
    )
    answer_options.add_argument("--top-p", type=float, default=1.0)
    answer_options.add_argument("--max-new-tokens", type=int, default=512)


def main(argv: list[str]) -> int:
    """Load a model, show it the files and answer the query, or the lines of standard input."""
    options = parse_options(argv)
    _silence_libraries()
    model, processor = load(
        options.model_path,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        quantise=options.quantise,
        lora=options.lora,
        merge=options.merge,
        attention=options.attention,
    )
    conversation = Conversation(model, processor, options.generation)
    for visual in options.visuals:
        show_visual(conversation, visual, options.sampling)
    if options.explain:
        explained_scales = options.scales or processor.trained_scales
        _write(explain_costs(conversation, options.query or "", explained_scales) + "\n")
    if options.query is None and options.explain:
        return 0
    answer_scales: Sequence[ScaleSetting | None] = options.scales or [None]
    if options.query is not None:
        stream_answer(conversation, options.query, answer_scales, _write)
    else:
        run_commands(conversation, answer_scales, options.sampling, _input_lines(), _write)
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
