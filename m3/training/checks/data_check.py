"""`m3 data check RECIPE [key=value ...]`: reads all that the recipe would, held-out samples too,
and says what is wrong.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3.config import load
from m3.data.checking.check import check_data
from m3.data.checking.findings_table import findings_table
from m3.data.checking.sample_check import KINDS
from m3.data.length_balancing import write_lengths
from m3.data.recipe import Source, open_source
from m3.data.sample import Sample
from m3.training.command import find_recipe
from m3.training.recipe.recipe import Recipe
from m3.training.setup.new_tokens import endless, new_rows, unsayable_tokens, warning
from m3.training.setup.resolved import ResolvedRun


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
    parser = argparse.ArgumentParser(
        prog="m3 data check", description=__doc__, epilog=f"Kinds of problems: {kind_texts}."
    )
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
    resolved = ResolvedRun(load(find_recipe(options.recipe), Recipe, options.overrides))
    recipe = resolved.recipe
    held_out = () if recipe.held_out is None else (recipe.held_out.source,)
    findings = check_data(
        replace(recipe.data, sources=(*recipe.data.listed, *held_out)),
        resolved.processor,
        recipe.matryoshka_vis_token_scale,
        workers=recipe.data.workers or None if options.workers is None else options.workers,
        decode=not options.headers,
        max_messages=options.messages,
        allowed=frozenset(options.allow),
    )
    # the held-out ones come last
    for source, source_findings in zip(recipe.data.listed, findings.sources, strict=False):
        if (
            source.weight > 0
            and not source_findings.counts["source"]
            and (warned := _warning(resolved, source))
        ):
            source_findings.add_problem("unsayable", warned, options.messages)
        if source_findings.samples and (sentence := _endless(resolved, source)):
            source_findings.add_problem("endless", sentence, options.messages)
    print(findings_table(findings))
    if options.lengths is not None:
        scale_costs = [
            (source.name, source_findings.costs)
            for source, source_findings in zip(recipe.data.listed, findings.sources, strict=False)
            if source.weight > 0
        ]
        scale_names, costs = zip(*scale_costs, strict=True)
        write_lengths(Path(options.lengths), costs, scale_names)
        print(f"lengths: {options.lengths}")
    return 1 if findings.failures else 0


def _warning(resolved: ResolvedRun, source: Source) -> str | None:
    """Tokens in the answers of a source that the run could not teach the model to say."""
    unsayable = unsayable_tokens(resolved.recipe, resolved.processor, [open_source(source)])
    if not unsayable:
        return None
    return warning(unsayable, resolved.processor, new_rows(resolved, unsayable))


def _endless(resolved: ResolvedRun, source: Source) -> str | None:
    """Fault of the ends of a source's answers, if it begins with a conversation."""
    try:
        is_talk = isinstance(open_source(source)[0], Sample)
    except ValueError:
        return None  # told already
    return endless(resolved, resolved.processor) if is_talk else None
