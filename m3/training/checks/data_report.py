"""What `m3 data check` does: reads the sources of a recipe, and says what is wrong with them and with
what the run would learn from them.
"""

from dataclasses import replace
from pathlib import Path

from m3.data.checking.check import check_data
from m3.data.checking.findings_table import findings_table
from m3.data.length_balancing import write_lengths
from m3.data.recipe import Source, open_source
from m3.data.sample import Sample
from m3.training.recipe.recipe import Recipe
from m3.training.setup.new_tokens import endless, new_rows, unsayable_tokens, warning
from m3.training.setup.resolved import ResolvedRun


def report_data(
    recipe: Recipe,
    *,
    workers: int | None,
    decode: bool,
    max_messages: int,
    allowed: frozenset[str],
    lengths: str | None,
) -> int:
    """Prints the table; 0 if all is well, 1 if anything is wrong."""
    resolved = ResolvedRun(recipe)
    held_out = () if recipe.held_out is None else (recipe.held_out.source,)
    findings = check_data(
        replace(recipe.data, sources=(*recipe.data.listed, *held_out)),
        resolved.processor,
        recipe.matryoshka_vis_token_scale,
        workers=workers,
        decode=decode,
        max_messages=max_messages,
        allowed=allowed,
    )
    # the held-out ones come last
    for source, source_findings in zip(recipe.data.listed, findings.sources, strict=False):
        if (
            source.weight > 0
            and not source_findings.counts["source"]
            and (warned := _warning(resolved, source))
        ):
            source_findings.add_problem("unsayable", warned, max_messages)
        if source_findings.samples and (sentence := _endless(resolved, source)):
            source_findings.add_problem("endless", sentence, max_messages)
    print(findings_table(findings))
    if lengths is not None:
        scale_costs = [
            (source.name, source_findings.costs)
            for source, source_findings in zip(recipe.data.listed, findings.sources, strict=False)
            if source.weight > 0
        ]
        scale_names, costs = zip(*scale_costs, strict=True)
        write_lengths(Path(lengths), costs, scale_names)
        print(f"lengths: {lengths}")
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
