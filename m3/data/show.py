"""Samples as they will be trained, on one page: what is learned, what is not, what each scale
costs.

in: a mixture, the processor and scales of a recipe; out: one self-contained HTML text. The page
runs no script and loads nothing; all text of the data is escaped.
"""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import jinja2

from m3.data.collate import excess
from m3.data.fact import Limits
from m3.data.mixture import Broken, Mixture
from m3.data.multiscale import IGNORED, expand
from m3.data.sample import AnySample, Document
from m3.data.tokenized import TemplateRefusalError, Tokenized, tokenize_sample
from m3.processing.images import load_image
from m3.processing.processor import M3Processor

THUMBNAIL = 160
"""Pixels of the longer side of an image on the page."""

Role = Literal["learned", "prompt", "control", "image"]


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one role; `tokens` of them, an image counting as one."""

    role: Role
    text: str
    tokens: int


@dataclass(frozen=True)
class Row:
    """What a sample costs at a scale (None: text alone)."""

    scale: int | None
    tokens: int
    visual: int
    learned: int
    weight: float


@dataclass(frozen=True)
class Shown:
    """One sample of the page.

    `error`: why it cannot be trained, in which case the rest may be empty.
    """

    position: int
    source: str
    record: int
    id: str
    kind: str
    error: str | None
    images: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    rows: tuple[Row, ...] = ()


def page(
    mixture: Mixture,
    names: Sequence[str],
    positions: Sequence[int],
    processor: M3Processor,
    limits: Limits,
) -> str:
    """The HTML of the samples at `positions`; `names` are those of the mixture's sources."""
    samples = [show_position(mixture, names, position, processor, limits) for position in positions]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("m3.data").joinpath("templates/show.html.jinja").read_text("utf-8")
    )
    return template.render(samples=samples, total=len(mixture), limits=limits)


def show_position(
    mixture: Mixture, names: Sequence[str], position: int, processor: M3Processor, limits: Limits
) -> Shown:
    """The sample that training would see at `position`, or why it would not."""
    source, record = mixture.place(position)
    sample = mixture[position].sample
    if isinstance(sample, Broken):
        return Shown(position, names[source], record, "", "broken", sample.why)
    kind = "document" if isinstance(sample, Document) else "conversation"
    try:
        images = tuple(_thumbnail(image) for image in sample.images)
    except ValueError as error:
        return Shown(position, names[source], record, sample.id, kind, str(error))
    try:
        tokenized = tokenize_sample(sample, processor)
    except TemplateRefusalError as error:
        return Shown(position, names[source], record, sample.id, kind, str(error), images)
    rows, error = _rows(sample, tokenized, processor, limits)
    return Shown(
        position,
        names[source],
        record,
        sample.id,
        kind,
        error,
        images,
        spans_of(tokenized, processor),
        rows,
    )


def spans_of(tokenized: Tokenized, processor: M3Processor) -> tuple[Span, ...]:
    """Ids and mask as text in pieces."""
    specials = set(processor.tokenizer.all_special_ids)

    def role(pair: tuple[int, bool]) -> Role:
        token, learned = pair
        if token == processor.image_token_id:
            return "image"
        return "learned" if learned else "control" if token in specials else "prompt"

    spans: list[Span] = []
    images = itertools.count(1)
    pairs = zip(tokenized.input_ids, tokenized.labels_mask, strict=True)
    for kind, group in itertools.groupby(pairs, role):
        ids = [token for token, _ in group]
        if kind == "image":
            spans += [Span("image", f"image {next(images)}", 1) for _ in ids]
        else:
            spans.append(Span(kind, processor.tokenizer.decode(ids), len(ids)))
    return tuple(spans)


def _rows(
    sample: AnySample, tokenized: Tokenized, processor: M3Processor, limits: Limits
) -> tuple[tuple[Row, ...], str | None]:
    outlines = [processor.outline(image) for image in sample.images]
    sequences = expand(tokenized, limits.scales, processor, outlines, limits.scale_weights)
    rows = tuple(
        Row(
            scale=sequence.scales[0] if sequence.scales else None,
            tokens=len(sequence.input_ids),
            visual=int((sequence.input_ids == processor.image_token_id).sum()),
            learned=int((sequence.labels != IGNORED).sum()),
            weight=sequence.weight,
        )
        for sequence in sequences
    )
    return rows, excess(sample, sequences, limits.max_length, limits.max_images)


def _thumbnail(image: str | Path | bytes) -> str:
    """A `data:` address of a small copy."""
    small = load_image(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
