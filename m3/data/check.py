"""Walks everything that a recipe would read, and says what is wrong before a run finds out.

in: a recipe's data, its processor and scales; out: `Findings`, a table and whether all is well.

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

from m3.data.fact import BROKEN, KINDS, NOTICES, Fact, Limits, look_at
from m3.data.formats import open_source
from m3.data.mixture import pass_length
from m3.data.recipe import Data, Source
from m3.data.sample import FilteredSource, PartlyReadSource, SampleSource
from m3.processing.processor import M3Processor

_CHUNK = 32
"""Records that a process looks at before it reports."""
_RECORDS_OF_A_PROCESS = 2000
"""A source with fewer is read in this process."""


@dataclass
class SourceFindings:
    """What one source holds."""

    name: str
    per_pass: int = 0
    samples: int = 0
    images: int = 0
    lengths: list[Counter[int]] = field(default_factory=list)
    """At each scale: how many samples have a length."""
    left_out: dict[str, int] = field(default_factory=dict)
    """By the source's filters: of each how many; they are no samples of it."""
    costs: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Tokens of every record over all scales, -1 where it is broken; for `m3/data/balance.py`."""
    unused: Counter[str] = field(default_factory=Counter)
    """Keys of records, members of tars and files that are not used: how many there are of each."""
    counts: Counter[str] = field(default_factory=Counter)
    """Of each kind of problem."""
    messages: dict[str, list[str]] = field(default_factory=dict)
    """The first of each kind."""
    records: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Numbers of the records that could be read."""
    content: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Hashes of these."""

    def add(self, kind: str, message: str, most: int) -> None:
        """Counts a problem, and keeps its message unless there are `most` already."""
        self.counts[kind] += 1
        kept = self.messages.setdefault(kind, [])
        if len(kept) < most:
            kept.append(message)


@dataclass
class Findings:
    """What the data of a recipe holds. `allowed`: kinds of problems that are accepted."""

    scales: tuple[int, ...]
    sources: list[SourceFindings]
    allowed: frozenset[str] = frozenset()

    def count(self, kind: str) -> int:
        """Problems of a kind over all sources."""
        return sum(source.counts[kind] for source in self.sources)

    @property
    def wrong(self) -> dict[str, int]:
        """Kind -> how many, of what makes the check fail."""
        fatal = [kind for kind in KINDS if kind not in NOTICES and kind not in self.allowed]
        return {kind: self.count(kind) for kind in fatal if self.count(kind)}


def check(
    data: Data,
    processor: M3Processor,
    scales: tuple[int, ...],
    workers: int | None = None,
    decode: bool = True,
    most: int = 5,
    allowed: frozenset[str] = frozenset(),
) -> Findings:
    """Looks at every record of every source.

    Args:
        data: of the recipe.
        processor: with which it would be trained.
        scales: over which it would be trained.
        workers: processes that look; 0 for this one, None for one per core where a source is large.
        decode: decode every image, rather than look whether its file is there.
        most: messages kept of each kind and source.
        allowed: kinds that do not make the check fail, beside those that the recipe says to leave
            out.

    Raises:
        ValueError: a kind that there is not.
    """
    unknown = allowed - set(KINDS)
    if unknown:
        raise ValueError(
            f"no such kind of problem: {', '.join(sorted(unknown))}. Known: {', '.join(KINDS)}"
        )
    limits = Limits(
        scales, data.longest, None if data.pack_length is None else data.max_images_per_row, decode
    )
    found: list[SourceFindings] = []
    for source in data.listed:
        findings = SourceFindings(f"{source.format}:{source.path}")
        found.append(findings)
        try:
            samples = open_source(source)
        except ValueError as error:
            findings.add("source", str(error), most)
            continue
        if isinstance(samples, FilteredSource):
            findings.left_out = dict(samples.left_out)
        if isinstance(samples, PartlyReadSource):
            findings.unused.update(samples.unread)
        _walk(
            source,
            samples,
            processor,
            limits,
            _processes(len(samples)) if workers is None else workers,
            most,
            findings,
        )
    _duplicates(found, most)
    left_out = (BROKEN if data.broken == "skip" else frozenset()) | (
        {"too_long"} if data.too_long == "drop" else set()
    )
    return Findings(scales, found, allowed | left_out)


def _processes(samples: int) -> int:
    """Those that a source is worth: starting one costs as much as some thousand records."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores, samples // _RECORDS_OF_A_PROCESS)


class _Chunks(Dataset[list[Fact]]):
    """What is found in records [_CHUNK * n, _CHUNK * (n + 1)) of a source."""

    def __init__(self, samples: SampleSource, processor: M3Processor, limits: Limits) -> None:
        self.samples, self.processor, self.limits = samples, processor, limits

    def __len__(self) -> int:
        return -(-len(self.samples) // _CHUNK)

    def __getitem__(self, chunk: int) -> list[Fact]:
        records = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self.samples)))
        return [look_at(self.samples, record, self.processor, self.limits) for record in records]


def _walk(
    source: Source,
    samples: SampleSource,
    processor: M3Processor,
    limits: Limits,
    workers: int,
    most: int,
    findings: SourceFindings,
) -> None:
    size = len(samples)
    findings.samples = size
    findings.per_pass = pass_length([size], [source.weight])
    findings.lengths = [Counter() for _ in limits.scales]
    findings.costs = np.full(size, -1, dtype=np.int32)
    ids, content = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    read = np.zeros(size, dtype=bool)
    loader = DataLoader(_Chunks(samples, processor, limits), batch_size=None, num_workers=workers)
    with tqdm(total=size, desc=source.path, unit="sample") as bar:
        for facts in loader:
            for fact in facts:
                findings.images += fact.images
                findings.unused.update(set(fact.unused))
                # none of a broken one
                for counter, length in zip(findings.lengths, fact.lengths, strict=False):
                    counter[length] += 1
                findings.costs[fact.record] = fact.cost
                ids[fact.record], content[fact.record] = fact.id_hash, fact.content_hash
                read[fact.record] = fact.kind not in ("record", "marks")
                if fact.kind is not None:
                    findings.add(fact.kind, fact.message, most)
            bar.update(len(facts))
    records = np.flatnonzero(read)
    for place in _repeated(ids[records]):
        findings.add("duplicate_id", _name_id(source, samples, int(records[place])), most)
    findings.records, findings.content = records, content[records]


def _name_id(source: Source, samples: SampleSource, record: int) -> str:
    return f"{source.path}, record {record}: the id {samples[record].id!r} stands twice"


def _duplicates(sources: Sequence[SourceFindings], most: int) -> None:
    """Samples of one text and one set of images, over all sources; counted where they stand for
    the second time.
    """
    starts = np.cumsum([0, *(len(source.content) for source in sources)])
    for place in _repeated(np.concatenate([source.content for source in sources])):
        number = int(np.searchsorted(starts, place, side="right")) - 1
        source = sources[number]
        record = int(source.records[place - starts[number]])
        source.add(
            "duplicate",
            f"{source.name}, record {record}: the same texts and images came before",
            most,
        )


def _repeated(hashes: np.ndarray) -> list[int]:
    """Places of the values that came before, ascending."""
    order = np.argsort(hashes, kind="stable")
    later = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    return sorted(later.tolist())
