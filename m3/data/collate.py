"""Samples in, one training micro-batch out. Last stop before the model's `forward`.

Comes in: a list of samples (or of `Positioned` ones, as `Mixture` gives them). Goes out, for `r`
rows of `l` tokens showing `i` different images in `s` placeholder spans:

    input_ids     int64 [r, l]   sequences one after the other, then padding
    labels        int64 [r, l]   -100 where nothing is learned
    position_ids  int64 [r, l]   start at 0 with every sequence, and with the padding behind the last one
    sequence_lengths int64 [r, q] lengths of each row's sequences in order, zeros behind them; the
    rest of the row is padding
    loss_weights  float32 [r, l] of each label token: 1 / (number of scales) with images, 1 without
    pixel_values  float32 [t, 3, H, W]  the tiles of every image once, however many scales and rows read it
    image_scales  int64 [s]      of each span, row by row, left to right
    image_index   int64 [s]      which of the i images the span shows
    image_tiles   int64 [i]      tiles of each image, where images are cut into tiles
    image_sizes   int64 [i, 2]   (height, width) of each image, where the tiling needs it
    attention_mask int64 [r, l]  only unpacked
    teacher_index int64 [r, l]   of each label token of a coarser scale the position, rows one after the other, of the same one
                                 at the largest scale, else -1; only where asked for
                                 (m3/data/multiscale.py:teacher_index)
    left_out      int64 [2]      broken samples and samples too long that the batch lacks; only where such may be left out

Without images all that speaks of them is absent. Packed (`pack_length`), sequences share rows and
no attention mask
is given: the lengths say where attention must stop, and the restarting positions say so to decoders
that take no lengths. Unpacked, each sequence has a row of its own.

**Which scales a step trains** (`sandwich`, `random`) must be equal on all ranks and after a resume.
A collate function runs in a worker process that knows neither step nor rank, but the position of
its samples does: rank r's k-th batch of b samples holds positions [(k * world_size + r) * b, ... +
b) (accelerate deals whole batches in turn). So the draw is a function of (seed, first position //
samples of a step): exact for any number of workers and for a resume that skips positions.
`step_samples` is that b * world_size, times the micro-steps where all of an optimiser step are to
draw alike.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from m3.data.mixture import Broken, Positioned
from m3.data.multiscale import (
    IGNORED,
    ScaledSequence,
    ScaleMode,
    draw_scales,
    expand,
    teacher_index,
)
from m3.data.packing import pack
from m3.data.sample import AnySample
from m3.data.tokenized import TemplateRefusalError, tokenize_sample
from m3.processing.images import MAX_PIXELS, ImageSource, load_image
from m3.processing.processor import M3Processor

logger = logging.getLogger(__name__)


@dataclass
class Collator:
    """A `collate_fn`: tokenise once, expand to the step's scales, pack, preprocess each image once.

    Raises (when called):
        ValueError: a sample that does not fit `max_length` or `max_images`, unless
            `overlong="drop"`; an image that cannot be read; see also `tokenize_sample`.
    """

    processor: M3Processor
    scales: ScaleMode | tuple[int, ...] = "all"
    """How each step's scales are chosen, or the scales themselves."""
    pack_length: int | None = None
    """Tokens a packed row may hold; None for one sequence per row."""
    max_images: int | None = None
    """Different images a packed row may show."""
    max_length: int | None = None
    """Tokens a sequence may have; None for `pack_length`, or no limit without it.

    Nothing is ever cut.
    """
    overlong: Literal["error", "drop"] = "error"
    """What to do with a sample that is too long or shows too many images.

    Dropped ones are counted and logged.
    """
    pad_to_multiple_of: int = 8
    """Row lengths are rounded up to this."""
    seed: int = 0
    """Of the scale draw."""
    step_samples: int | None = None
    """Samples that draw alike, of all ranks (batch size x world size x micro-steps); for
    `sandwich` and `random` only.
    """
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""
    scale_weights: Mapping[int, float] | None = None
    """Of the scales in the loss; 1 for those that it does not name.

    Together they weigh as much as without.
    """
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do with a sample whose image cannot be read, and with `Broken` ones.

    Skipped ones are counted and logged.
    """
    teacher_index: bool = False
    """Whether the batch says where the largest scale of each sample stands, for
    self-distillation.
    """

    def __post_init__(self) -> None:
        if self.scales in ("sandwich", "random") and self.step_samples is None:
            raise ValueError(
                f"scales={self.scales!r} needs step_samples (batch size x number of ranks), so "
                "that all ranks draw "
                "alike"
            )
        if (
            self.pack_length is not None
            and self.max_length is not None
            and self.max_length > self.pack_length
        ):
            raise ValueError(
                f"max_length={self.max_length} is more than a row holds "
                f"(pack_length={self.pack_length})"
            )
        if isinstance(self.scales, tuple):
            # refuses unreachable ones now rather than in a worker
            self.processor.check_scales(self.scales)

    def __call__(self, batch: Sequence[AnySample | Positioned]) -> dict[str, Tensor]:
        """See the module's docstring for what comes out."""
        scales = self._scales_of(batch)
        left_out = _LeftOut()
        images = _ImageTable()
        sequences: list[ScaledSequence] = []
        for position, item in enumerate(batch):
            sample = item.sample if isinstance(item, Positioned) else item
            if isinstance(sample, Broken):
                left_out.broken(sample.why)
                continue
            try:
                outlines = [
                    self.processor.outline(image, self.max_pixels) for image in sample.images
                ]
            except ValueError as error:
                if self.broken != "skip":
                    raise
                left_out.broken(f"sample {sample.id!r}: {error}")
                continue
            try:
                tokenized = tokenize_sample(sample, self.processor)
            except TemplateRefusalError as error:
                if self.broken != "skip":
                    raise
                left_out.broken(str(error))
                continue
            expanded = expand(tokenized, scales, self.processor, outlines, self.scale_weights)
            too_much = excess(
                sample,
                expanded,
                self.limit,
                self.max_images if self.pack_length is not None else None,
            )
            if too_much is not None:
                self._refuse_or_leave_out(too_much, left_out)
                continue
            try:
                numbers = images.numbers(
                    sample.images, self.max_pixels if self.broken == "skip" else None
                )
            except ValueError as error:
                left_out.broken(f"sample {sample.id!r}: {error}")
                continue
            sequences += [_renumber(sequence, numbers, position) for sequence in expanded]
        rows = self._rows(sequences)
        tensors = _tensors(
            rows, _pad_id(self.processor), self.pad_to_multiple_of, masked=self.pack_length is None
        )
        if self.teacher_index:
            tensors["teacher_index"] = torch.from_numpy(
                teacher_index(rows, tensors["input_ids"].shape[1])
            )
        if images.sources:
            spans = [sequence for row in rows for sequence in row]
            # Spans are listed in the order of the rows, not of the samples: the model meets them in
            # this order.
            prepared = self.processor.prepare_images(images.sources, self.max_pixels)
            tensors |= prepared.entries(self.processor.reader.tiling)
            tensors["image_scales"] = torch.tensor(
                [scale for s in spans for scale in s.scales], dtype=torch.int64
            )
            tensors["image_index"] = torch.tensor(
                [image for s in spans for image in s.images], dtype=torch.int64
            )
        if self.broken == "skip" or self.overlong == "drop":
            tensors["left_out"] = torch.tensor(left_out.counts, dtype=torch.int64)
        return tensors

    def _scales_of(self, batch: Sequence[AnySample | Positioned]) -> tuple[int, ...]:
        if isinstance(self.scales, tuple):
            return self.scales
        trained = tuple(self.processor.trained_scales)
        if self.scales == "all":
            return trained
        if not isinstance(batch[0], Positioned) or self.step_samples is None:
            raise ValueError(
                f"scales={self.scales!r} needs samples that know their position; read them through "
                "m3.data.mixture.Mixture"
            )
        return draw_scales(self.scales, trained, self.seed, batch[0].position // self.step_samples)

    @property
    def limit(self) -> int | None:
        """Tokens a sequence may have."""
        return self.pack_length if self.max_length is None else self.max_length

    def _refuse_or_leave_out(self, too_much: str, left_out: "_LeftOut") -> None:
        if self.overlong == "error":
            raise ValueError(
                f"{too_much}. Raise the limit, leave the sample out, drop such: `data.too_long: "
                "drop` in a recipe, or "
                "overlong='drop' of a Collator"
            )
        left_out.too_long(too_much)

    def _rows(self, sequences: list[ScaledSequence]) -> list[list[ScaledSequence]]:
        if self.pack_length is None:
            return [[sequence] for sequence in sequences]
        packed = pack(
            [len(sequence.input_ids) for sequence in sequences],
            [sequence.images for sequence in sequences],
            self.pack_length,
            self.max_images,
        )
        return [[sequences[number] for number in row] for row in packed]


def excess(
    sample: AnySample,
    sequences: Sequence[ScaledSequence],
    max_length: int | None,
    max_images: int | None,
) -> str | None:
    """What of the sample does not fit a row, in words; None if it fits."""
    longest = max(sequences, key=lambda sequence: len(sequence.input_ids))
    length = len(longest.input_ids)
    if max_length is not None and length > max_length:
        at = f" at {longest.scales[0]} tokens per image" if longest.scales else ""
        return f"sample {sample.id!r} has {length} tokens{at}, the limit is {max_length}"
    images = len(set(sample.images))
    if max_images is not None and images > max_images:
        return f"sample {sample.id!r} has {images} images, a row may show {max_images}"
    return None


class _LeftOut:
    """Counts what a batch lacks, and says why."""

    def __init__(self) -> None:
        self.counts = [0, 0]

    def broken(self, why: str) -> None:
        self.counts[0] += 1
        logger.warning("skipped: %s", why)

    def too_long(self, why: str) -> None:
        self.counts[1] += 1
        logger.warning("dropped: %s", why)


class _ImageTable:
    """Numbers the different images of a batch in the order of their first appearance."""

    def __init__(self) -> None:
        self.sources: list[ImageSource] = []
        self._numbers: dict[str | Path | bytes, int] = {}

    def numbers(self, images: Sequence[str | Path | bytes], open_up_to: int | None) -> list[int]:
        """Of a sample's images.

        `open_up_to` pixels: each new one is decoded now, so that a bad one leaves no trace.
        """
        new = [image for image in dict.fromkeys(images) if image not in self._numbers]
        opened: list[ImageSource] = [
            image if open_up_to is None else load_image(image, open_up_to) for image in new
        ]
        for image, source in zip(new, opened, strict=True):
            self._numbers[image] = len(self.sources)
            self.sources.append(source)
        return [self._numbers[image] for image in images]


def _renumber(sequence: ScaledSequence, numbers: list[int], sample: int) -> ScaledSequence:
    return replace(
        sequence, images=tuple(numbers[image] for image in sequence.images), sample=sample
    )


def _pad_id(processor: M3Processor) -> int:
    pad = processor.tokenizer.pad_token_id
    if pad is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
    return pad


def _tensors(
    rows: list[list[ScaledSequence]], pad_id: int, multiple: int, masked: bool
) -> dict[str, Tensor]:
    """`[r, l]` tensors.

    A batch of which every sample was dropped becomes one row of padding that trains nothing.
    """
    filled = [sum(len(sequence.input_ids) for sequence in row) for row in rows] or [0]
    length = max(multiple, -(-max(filled) // multiple) * multiple)
    shape = (len(filled), length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    loss_weights = np.zeros(shape, dtype=np.float32)
    for number, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence.input_ids)
            input_ids[number, start:end] = sequence.input_ids
            labels[number, start:end] = sequence.labels
            position_ids[number, start:end] = np.arange(end - start)
            loss_weights[number, start:end] = np.where(
                sequence.labels == IGNORED, 0.0, sequence.weight
            )
            start = end
    attention_mask = (np.arange(length)[None] < np.asarray(filled)[:, None]).astype(np.int64)
    # 0, 1, 2 ... behind the last sequence
    tail = np.arange(length)[None] - np.asarray(filled)[:, None]
    position_ids = np.where(attention_mask == 1, position_ids, tail)
    lengths = np.zeros((len(filled), max((len(row) for row in rows), default=1)), dtype=np.int64)
    for number, row in enumerate(rows):
        lengths[number, : len(row)] = [len(sequence.input_ids) for sequence in row]
    arrays = {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "sequence_lengths": lengths,
        "loss_weights": loss_weights,
    }
    if masked:
        arrays["attention_mask"] = attention_mask
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
