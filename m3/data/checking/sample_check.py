"""Check of one sample as training would read it: its cost at every scale, or its problem.

In: a source and a record number. Out: a `SampleCheck`. Nothing is kept between samples, so any
number of processes may check at once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3.data.collate import excess
from m3.data.multiscale import ScaledSequence, expand, outline_views
from m3.data.sample import AnySample, Document, ImageMarksError, SampleSource
from m3.data.tokenized import TemplateRefusalError, tokenize_sample
from m3.nesting import Budget, read_budget
from m3.processing.images import MAX_PIXELS, load_image
from m3.processing.processor import M3Processor

NOTICES = ("duplicate",)
"""Kinds that are listed, but do not make a check fail."""

BROKEN = frozenset({"record", "marks", "missing", "image"})
"""Kinds that a recipe with `broken: skip` leaves out."""


@dataclass(frozen=True)
class SampleLimits:
    """Limits of a recipe: tokens of a sequence, images of a row, and the scales it trains over."""

    scales: tuple[int | str, ...]
    max_length: int | None
    max_images: int | None
    decode: bool = True
    """Whether images are decoded, rather than their files looked for."""
    scale_weights: Mapping[int | str, float] | None = None
    """How the scales share the weight of a sample; None: alike."""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The scales as budgets, in their order."""
        return tuple(read_budget(scale) for scale in self.scales)


@dataclass(frozen=True)
class SampleCheck:
    """Result for one record.

    `lengths`: tokens at each scale (text alone is as long at every scale), empty if it is broken.
    """

    record: int
    lengths: tuple[int, ...] = ()
    images: int = 0
    id_hash: int = 0
    content_hash: int = 0
    cost: int = -1
    """Tokens of all its sequences, in the steps that train every scale; -1 if broken."""
    unused: tuple[str, ...] = ()
    """Keys of the record that are not used."""
    kind: str | None = None
    """A key of `KINDS`, or None if all is well."""
    message: str = ""


def check_sample(
    source: SampleSource, record: int, processor: M3Processor, limits: SampleLimits
) -> SampleCheck:
    """Read, decode and tokenise record number `record`."""
    try:
        sample = source[record]
    except ImageMarksError as error:
        return SampleCheck(record, kind="marks", message=str(error))
    except ValueError as error:
        return SampleCheck(record, kind="record", message=str(error))
    result = SampleCheck(
        record,
        images=len(sample.images),
        id_hash=_hash_all(sample.id),
        content_hash=_content_hash(sample),
        unused=sample.unused,
    )
    for image in sample.images:
        if isinstance(image, bytes) or str(image).startswith("data:"):
            continue
        if not Path(image).is_file():
            return replace(
                result, kind="missing", message=f"sample {sample.id!r}: {image}: no such image file"
            )
    try:
        views = outline_views(processor, sample.images, limits.budgets)
        for image in sample.images if limits.decode else ():
            load_image(image, MAX_PIXELS)
    except ValueError as error:
        return replace(result, kind="image", message=f"sample {sample.id!r}: {error}")
    try:
        tokenized = tokenize_sample(sample, processor)
    except TemplateRefusalError as error:
        return replace(result, kind="record", message=str(error))
    sequences = expand(tokenized, limits.budgets, processor, views)
    total_cost = sum(len(sequence.input_ids) for sequence in sequences)
    result = replace(result, lengths=_scale_lengths(sequences, len(limits.scales)), cost=total_cost)
    too_much = excess(sample, sequences, limits.max_length, limits.max_images)
    return result if too_much is None else replace(result, kind="too_long", message=too_much)


def _scale_lengths(sequences: Sequence[ScaledSequence], num_scales: int) -> tuple[int, ...]:
    lengths = tuple(len(sequence.input_ids) for sequence in sequences)
    # text alone makes one sequence
    return lengths if len(lengths) == num_scales else lengths * num_scales


def _hash_all(*contents: str | bytes) -> int:
    """64 bits: two of a hundred million differ by one chance in 3,700."""
    digest = hashlib.blake2b(digest_size=8)
    for content in contents:
        encoded = content.encode() if isinstance(content, str) else content
        # each behind its length: ("ab", "c") and ("a", "bc") are not the same
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _content_hash(sample: AnySample) -> int:
    texts = (
        sample.texts
        if isinstance(sample, Document)
        else [text for turn in sample.turns for text in (turn.role, *turn.texts)]
    )
    return _hash_all(
        *texts, *(image if isinstance(image, bytes) else str(image) for image in sample.images)
    )
