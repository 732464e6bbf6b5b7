"""Check of all data that a recipe names, before a run meets what is wrong with it.

In: a recipe's data, its processor and scales. Out: `Findings`, which findings_table.py prints.

Every record is read, decoded and tokenised once, in as many processes as asked for. Memory holds 20
bytes for each, one count for every different length, and the first few messages of each kind,
however large the data is.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from m3.data.checking.problem_kinds import KINDS
from m3.data.checking.sample_check import BROKEN, NOTICES, SampleCheck, SampleLimits, check_sample
from m3.data.mixture import pass_length
from m3.data.recipe import Data, Source, open_source
from m3.data.sample import SampleSource
from m3.processing.processor import M3Processor

_CHUNK_SIZE = 32
"""Records that a process checks before it reports."""
_PROCESS_SIZE = 2000
"""Records that are worth a process: a source with fewer is read in this one."""


@dataclass
class SourceFindings:
    """Findings in one source."""

    name: str
    per_pass: int = 0
    samples: int = 0
    images: int = 0
    lengths: list[Counter[int]] = field(default_factory=list)
    """At each scale: how many samples have a length."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples that each of the source's filters leaves out; they are no samples of it."""
    costs: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Tokens of every record over all scales, -1 if broken; for m3/data/length_balancing.py."""
    unused: Counter[str] = field(default_factory=Counter)
    """Keys of records, members of tars and files that are not used: how many there are of each."""
    counts: Counter[str] = field(default_factory=Counter)
    """Problems of each kind."""
    messages: dict[str, list[str]] = field(default_factory=dict)
    """The first messages of each kind."""
    records: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Numbers of the records that could be read."""
    content_hashes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Hashes of these."""

    def add_problem(self, kind: str, message: str, max_messages: int) -> None:
        """Count a problem, and keep its message unless there are `max_messages` already."""
        self.counts[kind] += 1
        messages = self.messages.setdefault(kind, [])
        if len(messages) < max_messages:
            messages.append(message)


@dataclass
class Findings:
    """Findings in the data of a recipe. `allowed`: kinds of problems that are accepted."""

    scales: tuple[int | str, ...]
    sources: list[SourceFindings]
    allowed: frozenset[str] = frozenset()

    def count(self, kind: str) -> int:
        """Problems of a kind over all sources."""
        return sum(source.counts[kind] for source in self.sources)

    @property
    def failures(self) -> dict[str, int]:
        """Problems that make the check fail: kind -> how many."""
        fatal_kinds = [kind for kind in KINDS if kind not in NOTICES and kind not in self.allowed]
        return {kind: self.count(kind) for kind in fatal_kinds if self.count(kind)}


def check_data(
    data: Data,
    processor: M3Processor,
    scales: tuple[int | str, ...],
    workers: int | None = None,
    decode: bool = True,
    max_messages: int = 5,
    allowed: frozenset[str] = frozenset(),
) -> Findings:
    """Check every record of every source.

    Args:
        data: of the recipe.
        processor: with which it would be trained.
        scales: over which it would be trained.
        workers: processes that check; 0 for this one, None for one per core where a source is
            large.
        decode: decode every image, rather than look whether its file is there.
        max_messages: messages kept of each kind and source.
        allowed: kinds that do not make the check fail, beside those that the recipe says to leave
            out.

    Raises:
        ValueError: a kind that there is not.
    """
    unknown_kinds = allowed - set(KINDS)
    if unknown_kinds:
        raise ValueError(
            f"no such kind of problem: {', '.join(sorted(unknown_kinds))}. Known: "
            f"{', '.join(KINDS)}"
        )
    limits = SampleLimits(
        scales, data.longest, None if data.pack_length is None else data.max_images_per_row, decode
    )
    checked = [
        _check_source(source, processor, limits, workers, max_messages) for source in data.listed
    ]
    _add_duplicates(checked, max_messages)
    skipped = BROKEN if data.broken == "skip" else frozenset()
    dropped = {"too_long"} if data.too_long == "drop" else set()
    return Findings(scales, checked, allowed | skipped | dropped)


def _check_source(
    source: Source,
    processor: M3Processor,
    limits: SampleLimits,
    workers: int | None,
    max_messages: int,
) -> SourceFindings:
    findings = SourceFindings(source.name)
    try:
        samples = open_source(source)
    except ValueError as error:
        findings.add_problem("source", str(error), max_messages)
        return findings
    findings.left_out = dict(samples.records.left_out)
    findings.unused.update(samples.records.unread)
    findings.samples = len(samples)
    findings.per_pass = pass_length([len(samples)], [source.weight])
    findings.lengths = [Counter() for _ in limits.scales]
    num_workers = _worth_processes(len(samples)) if workers is None else workers
    loader = DataLoader(
        _Chunks(samples, processor, limits), batch_size=None, num_workers=num_workers
    )
    _collect(source, samples, loader, max_messages, findings)
    return findings


def _worth_processes(samples: int) -> int:
    """Processes that a source is worth: starting one costs as much as some thousand records."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores, samples // _PROCESS_SIZE)


class _Chunks(Dataset[list[SampleCheck]]):
    """Checks of records [_CHUNK_SIZE * n, _CHUNK_SIZE * (n + 1)) of a source."""

    def __init__(self, samples: SampleSource, processor: M3Processor, limits: SampleLimits) -> None:
        self.samples, self.processor, self.limits = samples, processor, limits

    def __len__(self) -> int:
        return -(-len(self.samples) // _CHUNK_SIZE)

    def __getitem__(self, chunk: int) -> list[SampleCheck]:
        records = range(chunk * _CHUNK_SIZE, min((chunk + 1) * _CHUNK_SIZE, len(self.samples)))
        return [
            check_sample(self.samples, record, self.processor, self.limits) for record in records
        ]


def _collect(
    source: Source,
    samples: SampleSource,
    loader: DataLoader[list[SampleCheck]],
    max_messages: int,
    findings: SourceFindings,
) -> None:
    """Add up the checks of all records, and look for ids that stand twice."""
    num_samples = len(samples)
    findings.costs = np.full(num_samples, -1, dtype=np.int32)
    id_hashes = np.zeros(num_samples, dtype=np.int64)
    content_hashes = np.zeros(num_samples, dtype=np.int64)
    is_readable = np.zeros(num_samples, dtype=bool)
    with tqdm(total=num_samples, desc=source.path, unit="sample") as progress:
        for results in loader:
            for result in results:
                findings.images += result.images
                findings.unused.update(set(result.unused))
                # a broken one has no lengths
                for counter, length in zip(findings.lengths, result.lengths, strict=False):
                    counter[length] += 1
                findings.costs[result.record] = result.cost
                id_hashes[result.record] = result.id_hash
                content_hashes[result.record] = result.content_hash
                is_readable[result.record] = result.kind not in ("record", "marks")
                if result.kind is not None:
                    findings.add_problem(result.kind, result.message, max_messages)
            progress.update(len(results))
    records = np.flatnonzero(is_readable)
    for position in _repeated(id_hashes[records]):
        record = int(records[position])
        message = f"{source.path}, record {record}: the id {samples[record].id!r} stands twice"
        findings.add_problem("duplicate_id", message, max_messages)
    findings.records, findings.content_hashes = records, content_hashes[records]


def _add_duplicates(sources: Sequence[SourceFindings], max_messages: int) -> None:
    """Samples with the same texts and images, over all sources; the first does not count."""
    starts = np.cumsum([0, *(len(source.content_hashes) for source in sources)])
    for position in _repeated(np.concatenate([source.content_hashes for source in sources])):
        number = int(np.searchsorted(starts, position, side="right")) - 1
        source = sources[number]
        record = int(source.records[position - starts[number]])
        source.add_problem(
            "duplicate",
            f"{source.name}, record {record}: the same texts and images came before",
            max_messages,
        )


def _repeated(hashes: np.ndarray) -> list[int]:
    """Positions of the values that came before, ascending."""
    order = np.argsort(hashes, kind="stable")
    later = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    return sorted(later.tolist())
