"""`m3 assemble`: any vision encoder and any causal decoder become one new checkpoint, to be
trained.

in: a folder (or hub id) of each, a connector and a nesting by name; way: encoder and decoder keep
their weights; the connector gets random ones, and so do the new rows of the embedding, for the
image token and for what the chat format needs (drawn like the old rows);
out: a native checkpoint, streamed like any conversion.
"""

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path

from m3 import nesting
from m3.command_line import CommandLine, row_names

logger = logging.getLogger(__name__)

KINDS = Path(nesting.__file__).with_name("kinds.py")
GENERAL_CONNECTORS = ("mlp2x_gelu", "linear", "resampler", "pixel_shuffle")
"""Connectors between any two models; the others need settings of one family of checkpoints."""


def main(argv: list[str]) -> int:
    """Parses the arguments and assembles."""
    parsed_arguments = _parser().parse_args(argv)
    scales = [
        scale.strip()
        for scale in (parsed_arguments.matryoshka_vis_token_scale or "").split(",")
        if scale.strip()
    ]
    if not all(scale.isdecimal() for scale in scales):
        raise ValueError(
            "--matryoshka_vis_token_scale takes numbers with commas, such as 1,9,36; got "
            f"{parsed_arguments.matryoshka_vis_token_scale!r}"
        )
    template = parsed_arguments.chat_template and parsed_arguments.chat_template.read_text()
    from m3.checkpoints.assemble import Choices, assemble
    from m3.checkpoints.pickled import as_safetensors
    from m3.checkpoints.places import find

    assemble_choices = Choices(
        parsed_arguments.connector,
        parsed_arguments.nesting,
        parsed_arguments.queries,
        [int(scale) for scale in scales],
        template,
        parsed_arguments.seed,
    )
    allow_pickle, dest = parsed_arguments.allow_pickle, parsed_arguments.dest
    vision = find(parsed_arguments.vision, allow_pickle)
    decoder = find(parsed_arguments.decoder, allow_pickle)
    with ExitStack() as stack:
        if allow_pickle:
            vision = stack.enter_context(as_safetensors(vision, dest.parent))
            decoder = stack.enter_context(as_safetensors(decoder, dest.parent))
        assemble(vision, decoder, dest, assemble_choices)
    logger.info("written: %s", dest)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine("m3 assemble", __doc__)
    parser.add_argument("dest", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--vision", required=True, help="folder or id of a vision encoder, or of a CLIP-like pair"
    )
    parser.add_argument("--decoder", required=True, help="folder or id of a causal language model")
    parser.add_argument("--connector", default="mlp2x_gelu", choices=GENERAL_CONNECTORS)
    parser.add_argument("--nesting", default="grid_pool", choices=row_names(KINDS, "NESTINGS"))
    parser.add_argument("--queries", type=int, help="of the resampler")
    parser.add_argument(
        "--matryoshka_vis_token_scale", help="scales to be trained, such as 1,9,36,144,576"
    )
    parser.add_argument(
        "--chat-template",
        type=Path,
        help="a Jinja file to use instead of the tokenizer's own format",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the connector and of the new tokens' rows"
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled weights (.bin) too, by torch.load(weights_only=True) in a process of its "
        "own: of authors you trust",
    )
    return parser
