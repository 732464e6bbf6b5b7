"""`m3 data check RECIPE [key=value ...]`: reads all that the recipe would, held-out samples too,
and says what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from m3.command_line import CommandLine
from m3.data.checking.problem_kinds import KINDS
from m3.training.command import read_model_recipe


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Command line of `m3 data check`. `workers`: None for what the recipe says."""

    recipe: str
    overrides: Sequence[str]
    workers: int | None
    headers: bool
    allow: Sequence[str]
    messages: int
    lengths: str | None


def parse_options(argv: Sequence[str]) -> CheckOptions:
    """Read the command line."""
    kind_texts = "; ".join(f"{problem_kind}: {meaning}" for problem_kind, meaning in KINDS.items())
    parser = CommandLine("m3 data check", __doc__, epilog=f"Kinds of problems: {kind_texts}.")
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example data.pack_length=2048"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that read (default: the recipe's data.workers, or if that is 0 one per "
        "core)",
    )
    parser.add_argument(
        "--headers",
        action="store_true",
        help="only look whether image files are there: much faster",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND",
        help="a kind of problem that is fine",
    )
    parser.add_argument(
        "--messages",
        type=int,
        default=5,
        help="messages shown of each kind and source (default: 5)",
    )
    parser.add_argument(
        "--lengths", metavar="FILE.npz", help="keep the lengths, for the recipe's data.lengths"
    )
    # options may stand between key=value
    return CheckOptions(**vars(parser.parse_intermixed_args(list(argv))))


def main(argv: list[str]) -> int:
    """Prints the table; 0 if all is well, 1 if anything is wrong."""
    options = parse_options(argv)
    recipe = read_model_recipe(options.recipe, options.overrides)
    # torch is imported once command line and recipe are known to be good
    from m3.training.checks.data_report import report_data

    return report_data(
        recipe,
        workers=recipe.data.workers or None if options.workers is None else options.workers,
        decode=not options.headers,
        max_messages=options.messages,
        allowed=frozenset(options.allow),
        lengths=options.lengths,
    )
