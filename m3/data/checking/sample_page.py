"""HTML page of samples as they will be trained: what is learned, what is not, each scale's cost.

In: a mixture, the processor and scales of a recipe. Out: one self-contained HTML text. The page
runs no script and loads nothing; all text of the data is escaped.
"""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import jinja2

from m3.data.checking.sample_check import SampleLimits
from m3.data.collate import excess
from m3.data.mixture import Broken, Mixture
from m3.data.multiscale import IGNORED, expand, outline_views
from m3.data.sample import AnySample, Document
from m3.data.tokenized import TemplateRefusalError, Tokenized, tokenize_sample
from m3.nesting import read_budget
from m3.processing.images import load_image
from m3.processing.processor import M3Processor

THUMBNAIL_SIZE = 160
"""Pixels of the longer side of an image on the page."""

TokenRole = Literal["learned", "prompt", "control", "image"]


@dataclass(frozen=True)
class TokenSpan:
    """Neighbouring tokens of one role; `tokens` of them, an image counting as one."""

    role: TokenRole
    text: str
    tokens: int


@dataclass(frozen=True)
class ScaleCost:
    """Cost of a sample at one scale (None: text alone), in tokens."""

    scale: int | str | None
    tokens: int
    visual: int
    learned: int
    weight: float


@dataclass(frozen=True)
class SampleView:
    """One sample of the page.

    `error`: why it cannot be trained, in which case the rest may be empty.
    """

    position: int
    source: str
    record: int
    id: str = ""
    kind: str = "broken"
    error: str | None = None
    images: tuple[str, ...] = ()
    spans: tuple[TokenSpan, ...] = ()
    costs: tuple[ScaleCost, ...] = ()


def sample_page(
    mixture: Mixture,
    names: Sequence[str],
    positions: Sequence[int],
    processor: M3Processor,
    limits: SampleLimits,
) -> str:
    """The HTML of the samples at `positions`; `names` are those of the mixture's sources."""
    samples = [view_position(mixture, names, position, processor, limits) for position in positions]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("m3.data.checking").joinpath("templates/sample_page.html.jinja").read_text("utf-8")
    )
    return template.render(samples=samples, total=len(mixture), limits=limits)


def view_position(
    mixture: Mixture,
    names: Sequence[str],
    position: int,
    processor: M3Processor,
    limits: SampleLimits,
) -> SampleView:
    """The sample that training would see at `position`, or why it would not."""
    source, record = mixture.record_at(position)
    view = SampleView(position, names[source], record)
    sample = mixture[position].sample
    if isinstance(sample, Broken):
        return replace(view, error=sample.reason)
    kind = "document" if isinstance(sample, Document) else "conversation"
    view = replace(view, id=sample.id, kind=kind)
    try:
        view = replace(view, images=tuple(_thumbnail(image) for image in sample.images))
    except ValueError as error:
        return replace(view, error=str(error))
    try:
        tokenized = tokenize_sample(sample, processor)
    except TemplateRefusalError as error:
        return replace(view, error=str(error))
    costs, error = _scale_costs(sample, tokenized, processor, limits)
    return replace(view, error=error, spans=token_spans(tokenized, processor), costs=costs)


def token_spans(tokenized: Tokenized, processor: M3Processor) -> tuple[TokenSpan, ...]:
    """Ids and mask as text in pieces."""
    specials = set(processor.tokenizer.all_special_ids)

    def role(pair: tuple[int, bool]) -> TokenRole:
        token, learned = pair
        if token == processor.image_token_id:
            return "image"
        return "learned" if learned else "control" if token in specials else "prompt"

    spans: list[TokenSpan] = []
    images = itertools.count(1)
    pairs = zip(tokenized.input_ids, tokenized.labels_mask, strict=True)
    for kind, group in itertools.groupby(pairs, role):
        ids = [token for token, _ in group]
        if kind == "image":
            spans += [TokenSpan("image", f"image {next(images)}", 1) for _ in ids]
        else:
            spans.append(TokenSpan(kind, processor.tokenizer.decode(ids), len(ids)))
    return tuple(spans)


def _scale_costs(
    sample: AnySample, tokenized: Tokenized, processor: M3Processor, limits: SampleLimits
) -> tuple[tuple[ScaleCost, ...], str | None]:
    views = outline_views(processor, sample.images, limits.budgets)
    weights = {read_budget(scale): weight for scale, weight in (limits.scale_weights or {}).items()}
    sequences = expand(tokenized, limits.budgets, processor, views, weights)
    costs = tuple(
        ScaleCost(
            scale=sequence.budget.setting if sequence.budget else None,
            tokens=len(sequence.input_ids),
            visual=int((sequence.input_ids == processor.image_token_id).sum()),
            learned=int((sequence.labels != IGNORED).sum()),
            weight=sequence.weight,
        )
        for sequence in sequences
    )
    return costs, excess(sample, sequences, limits.max_length, limits.max_images)


def _thumbnail(image: str | Path | bytes) -> str:
    """A `data:` address of a small copy."""
    small = load_image(image)
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
