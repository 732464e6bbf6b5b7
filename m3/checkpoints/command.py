"""`m3 convert SOURCE DEST`: a checkpoint of another format becomes a native one; with --to, a
native one another's.
"""

import argparse
import math
import sys
from pathlib import Path

from m3.command_line import CommandLine

FORMAT_NAMES = ("m3-native", "m3", "llava-hf", "llava-next-hf", "aria", "internvl")
"""Rows of m3/checkpoints/formats/__init__.py, said here so that a help text waits for no torch."""


def main(argv: list[str]) -> int:
    """Parses the arguments and converts; 0 done, 1 the tensors are not those of the format."""
    arguments = _parser().parse_args(argv)
    from m3.checkpoints.base import Options
    from m3.checkpoints.convert import convert
    from m3.checkpoints.places import find
    from m3.checkpoints.streaming import MismatchError

    convert_options = Options(
        vision_tower=arguments.vision_tower
        and find(arguments.vision_tower, arguments.allow_pickle),
        tokenizer=arguments.tokenizer and find(arguments.tokenizer),
        chat_template=arguments.chat_template and arguments.chat_template.read_text(),
        allow_pickle=arguments.allow_pickle,
    )
    if not 0 < arguments.shard_gb < math.inf:
        raise ValueError(f"--shard-gb {arguments.shard_gb:g}: expected more than 0")
    shard_bytes = int(arguments.shard_gb * 10**9)
    try:
        convert(
            find(arguments.source, arguments.allow_pickle),
            arguments.dest,
            arguments.format,
            arguments.to,
            convert_options,
            shard_bytes,
        )
    except MismatchError as error:
        print(f"m3 convert: {error}", file=sys.stderr)
        return 1
    print(f"written: {arguments.dest}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine("m3 convert", __doc__)
    parser.add_argument("source", help="folder of the checkpoint, or its id on the hub")
    parser.add_argument("dest", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--format", default="auto", choices=["auto", *FORMAT_NAMES], help="format of SOURCE"
    )
    parser.add_argument(
        "--to", default=FORMAT_NAMES[0], choices=FORMAT_NAMES, help="format of DEST"
    )
    parser.add_argument(
        "--vision-tower", help="folder or id of the vision tower, where SOURCE does not contain it"
    )
    parser.add_argument("--tokenizer", help="folder or id of the tokenizer, where SOURCE has none")
    parser.add_argument(
        "--chat-template",
        type=Path,
        help="a Jinja file to use instead of the checkpoint's own format",
    )
    parser.add_argument(
        "--shard-gb",
        type=float,
        default=1.0,
        help="largest file of weights; bounds the memory needed",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled weights (.bin) too, by torch.load(weights_only=True) in a process of its "
        "own: of authors you trust",
    )
    return parser
