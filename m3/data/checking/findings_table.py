"""Findings of a check as text: numbers of samples, their lengths, and what is wrong."""

from collections import Counter

from m3.data.checking.check import Findings
from m3.data.checking.problem_kinds import KINDS
from m3.data.checking.sample_check import NOTICES
from m3.text_table import align_columns

PERCENTILES = (50, 90, 99)


def findings_table(findings: Findings) -> str:
    """Lines for a terminal."""
    return "\n".join(
        [
            *_source_lines(findings),
            "",
            *_length_lines(findings),
            "",
            *_problem_lines(findings),
            *_unused_lines(findings),
        ]
    )


def _source_lines(findings: Findings) -> list[str]:
    rows: list[tuple[str, ...]] = [("source", "samples", "images", "per pass", "problems")]
    for source in findings.sources:
        problems = sum(count for kind, count in source.counts.items() if kind not in NOTICES)
        rows.append(
            (
                source.name,
                f"{source.samples:,}",
                f"{source.images:,}",
                f"{source.per_pass:,}",
                f"{problems:,}",
            )
        )
    if len(findings.sources) > 1:
        columns = zip(
            *([int(cell.replace(",", "")) for cell in row[1:]] for row in rows[1:]), strict=True
        )
        rows.append(("all", *(f"{sum(column):,}" for column in columns)))
    filter_lines = [
        f"left out of {source.name} by its filters: "
        + ", ".join(f"{n:,} {name}" for name, n in source.left_out.items())
        for source in findings.sources
        if source.left_out
    ]
    return [*align_columns(rows, left_columns=1), *filter_lines]


def _length_lines(findings: Findings) -> list[str]:
    """Percentiles of the tokens of a sequence, images and all."""
    head = (
        "tokens of a sample",
        "scale",
        "mean",
        *(f"{percentile} %" for percentile in PERCENTILES),
        "longest",
    )
    rows: list[tuple[str, ...]] = [head]
    for source in findings.sources:
        # a source that was not opened has no lengths, and texts alone are as long at every scale
        counters = dict(zip(map(str, findings.scales), source.lengths, strict=False))
        if not source.images:
            counters = dict(zip(("any",), source.lengths, strict=False))
        for scale, counter in counters.items():
            if counter:
                mean = sum(length * count for length, count in counter.items()) / counter.total()
                marks = [f"{percentile(counter, mark):,}" for mark in PERCENTILES]
                rows.append((source.name, scale, f"{mean:,.1f}", *marks, f"{max(counter):,}"))
    return align_columns(rows, left_columns=1)


def percentile(lengths: Counter[int], mark: int) -> int:
    """The smallest length that at least `mark` per cent of the samples do not exceed."""
    needed_samples = lengths.total() * mark / 100
    samples_so_far = 0
    for length in sorted(lengths):
        samples_so_far += lengths[length]
        if samples_so_far >= needed_samples:
            return length
    raise AssertionError("an empty counter has no percentiles")


def _problem_lines(findings: Findings) -> list[str]:
    lines: list[str] = []
    for kind, meaning in KINDS.items():
        count = findings.count(kind)
        if not count:
            continue
        state = (
            " (a notice)" if kind in NOTICES else " (allowed)" if kind in findings.allowed else ""
        )
        lines.append(f"{kind}: {count:,} x {meaning}{state}")
        messages = [
            message for source in findings.sources for message in source.messages.get(kind, [])
        ]
        lines += [f"    {message}" for message in messages]
        if count > len(messages):
            lines.append(f"    ... and {count - len(messages):,} more")
    if not findings.failures:
        return [*lines, "all is well"]
    total = sum(findings.failures.values())
    return [
        *lines,
        f"{total:,} problem{'s' * (total > 1)}: "
        f"{', '.join(f'{n:,} {kind}' for kind, n in findings.failures.items())}",
    ]


def _unused_lines(findings: Findings) -> list[str]:
    """The keys and members that nothing reads, the most frequent first."""
    return [
        f"not used of {source.name}: "
        + ", ".join(
            f"{key} ({count:,} x)" for key, count in sorted(source.unused.items(), key=_most_first)
        )
        for source in findings.sources
        if source.unused
    ]


def _most_first(entry: tuple[str, int]) -> tuple[int, str]:
    """Sort key: by falling count, equal counts by name."""
    return -entry[1], entry[0]
