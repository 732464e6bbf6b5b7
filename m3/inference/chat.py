"""What `m3 chat` does with its command line: a conversation about the files that are shown, once or
turn by turn.
"""

import argparse
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m3.inference.conversation import Conversation, Generation
from m3.inference.cost_table import explain_costs
from m3.inference.loading import load
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


def chat_options(arguments: argparse.Namespace) -> ChatOptions:
    """The command line as typed data; a `ValueError` for a scale, frames or settings of generation
    that make no sense.
    """
    scale_text = arguments.matryoshka_vis_token_scale
    return ChatOptions(
        model_path=arguments.model_path,
        visuals=tuple(Visual(kind, file) for kind, file in arguments.visuals),
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


def answer_queries(arguments: argparse.Namespace) -> int:
    """Load a model, show it the files and answer the query, or the lines of standard input."""
    options = chat_options(arguments)
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
        run_commands(conversation, answer_scales, options.sampling, input_lines(), _write)
    return 0


def _write(text: str) -> None:
    """Print and flush, so that an answer can be read while it is generated."""
    sys.stdout.write(text)
    sys.stdout.flush()


def input_lines() -> Iterator[str]:
    """Lines of standard input; a terminal gets a prompt before each, and arrow keys edit it."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    if importlib.util.find_spec("readline") is not None:  # not on Windows
        importlib.import_module("readline")  # `input` uses it from now on
    _write("Ask away; /help lists the commands.\n")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            _write("\nCtrl-D or /exit ends.\n")
        except EOFError:
            _write("\n")
            return


def _silence_libraries() -> None:
    """Turn off progress bars and informative messages of libraries; warnings stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
