"""Collation: samples in, one training micro-batch out. Last stop before the model's `forward`.

In: a list of samples (or of `Positioned` ones, as `Mixture` gives them). Out, for `r` rows of `l`
tokens showing `i` different images in `s` placeholder spans:

    input_ids     int64 [r, l]   sequences one after the other, then padding
    labels        int64 [r, l]   -100 where nothing is learned
    position_ids  int64 [r, l]   start at 0 with every sequence, and with the padding behind the last one
    sequence_lengths int64 [r, q] lengths of each row's sequences in order, zeros behind them; the
                                 rest of the row is padding
    loss_weights  float32 [r, l] weight of each label token: 1 / (number of scales) with images, 1 without
    pixel_values  float32 [t, 3, H, W]  the tiles of every image once per resolution of the step, however many scales and
                                 rows read it; an image at two resolutions counts as two
    image_scales  int64 [s]      scale of each span, row by row, left to right
    image_index   int64 [s]      index (below i) of the image that the span shows
    image_tiles   int64 [i]      tiles of each image, where images are cut into tiles
    image_sizes   int64 [i, 2]   (height, width) of each image, where the tiling needs it
    image_resolutions int64 [i], tile_tokens int64 [i], pixel_mask bool [t, H, W]  where there is more than one resolution:
                                 that of each image (0: the largest), tokens of its tiles, pixels that are no padding
    attention_mask int64 [r, l]  only unpacked
    teacher_index int64 [r, l]   for each label token of a coarser scale the position, rows one after the other, of the same
                                 token at the largest scale, else -1; only where asked for
                                 (m3/data/multiscale.py:teacher_index)
    left_out      int64 [2]      broken samples and samples too long that the batch lacks; only where such may be left out

Without images all that speaks of them is absent. Packed (`pack_length`), sequences share rows and
no attention mask is given: the lengths say where attention must stop, and the restarting positions
say so to decoders that take no lengths. Unpacked, each sequence has a row of its own.

An image is met three times, as tokens are counted before pixels are made:

1. `processor.outline`: its size from the header, and so its tiles and its tokens at each scale;
2. `expand` and `pack`: sequences with that many placeholders, in rows;
3. `processor.prepare_images`: its pixels, once per batch.

**The scales of a step** (`sandwich`, `random`) must be equal on all ranks and after a resume.
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
    draw_budgets,
    expand,
    outline_views,
    teacher_index,
)
from m3.data.packing import pack
from m3.data.sample import AnySample
from m3.data.tokenized import TemplateRefusalError, tokenize_sample
from m3.nesting import Budget, resolutions
from m3.processing.images import MAX_PIXELS, ImageSource, load_image
from m3.processing.processor import M3Processor
from m3.processing.tiles import TileOptions

logger = logging.getLogger(__name__)


@dataclass
class Collator:
    """A `collate_fn`: tokenise once, expand to the step's scales, pack, preprocess each image once.

    Raises (when called):
        ValueError: a sample that does not fit `max_length` or `max_images`, unless
            `too_long="drop"`; an image that cannot be read; see also `tokenize_sample`.
    """

    processor: M3Processor
    scales: ScaleMode | tuple[int | str | Budget, ...] = "all"
    """Rule that chooses each step's budgets, or the budgets themselves."""
    pack_length: int | None = None
    """Tokens a packed row may hold; None for one sequence per row."""
    max_images: int | None = None
    """Different images a packed row may show."""
    max_length: int | None = None
    """Tokens a sequence may have; None for `pack_length`, or no limit without it.

    Nothing is ever cut.
    """
    too_long: Literal["refuse", "drop"] = "refuse"
    """Treatment of a sample that is too long or shows too many images.

    Dropped ones are counted and logged.
    """
    pad_to_multiple_of: int = 8
    """Row lengths are rounded up to this."""
    seed: int = 0
    """Seed of the scale draw."""
    step_samples: int | None = None
    """Samples that draw alike, of all ranks (batch size x world size x micro-steps); for
    `sandwich` and `random` only.
    """
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""
    scale_weights: Mapping[int | str, float] | None = None
    """Loss weight per budget (default 1), normalised to an unchanged total weight of a sample."""
    broken: Literal["refuse", "skip"] = "refuse"
    """Treatment of a sample whose image cannot be read, and of `Broken` ones.

    Skipped ones are counted and logged.
    """
    teacher_index: bool = False
    """Add `teacher_index` to the batch, for self-distillation."""

    def __post_init__(self) -> None:
        if self.scales in ("sandwich", "random") and self.step_samples is None:
            raise ValueError(
                f"scales={self.scales!r} needs step_samples (batch size x number of ranks), so "
                "that all ranks draw alike"
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
        # refuses unreachable ones now rather than in a worker
        processor, weights = self.processor, self.scale_weights or {}
        if isinstance(self.scales, tuple):
            self.scales = tuple(processor.budget(setting) for setting in self.scales)
        self._budget_weights = {processor.budget(s): weight for s, weight in weights.items()}

    def __call__(self, batch: Sequence[AnySample | Positioned]) -> dict[str, Tensor]:
        """The tensors that the module's docstring lists."""
        budgets = self._budgets_of(batch)
        left_out, images = _LeftOut(), _ImageTable()
        sequences: list[ScaledSequence] = []
        for number, item in enumerate(batch):
            sample = item.sample if isinstance(item, Positioned) else item
            sequences += self._expand_sample(sample, number, budgets, images, left_out)
        rows = self._rows(sequences)
        tensors = _row_tensors(
            rows, _pad_id(self.processor), self.pad_to_multiple_of, masked=self.pack_length is None
        )
        if self.teacher_index:
            tensors["teacher_index"] = torch.from_numpy(
                teacher_index(rows, tensors["input_ids"].shape[1])
            )
        if images.sources:
            tensors |= self._image_tensors(rows, images)
        if self.broken == "skip" or self.too_long == "drop":
            tensors["left_out"] = torch.tensor(left_out.counts, dtype=torch.int64)
        return tensors

    def _expand_sample(
        self,
        sample: AnySample | Broken,
        number: int,
        budgets: tuple[Budget, ...],
        images: "_ImageTable",
        left_out: "_LeftOut",
    ) -> list[ScaledSequence]:
        """Sequences of sample `number` of the batch, none if it is left out."""
        if isinstance(sample, Broken):
            left_out.add_broken(sample.reason)
            return []
        try:
            views = outline_views(self.processor, sample.images, budgets, self.max_pixels)
        except ValueError as error:
            self._refuse_or_skip(error, f"sample {sample.id!r}: {error}", left_out)
            return []
        try:
            tokenized = tokenize_sample(sample, self.processor)
        except TemplateRefusalError as error:
            self._refuse_or_skip(error, str(error), left_out)
            return []
        sequences = expand(tokenized, budgets, self.processor, views, self._budget_weights)
        max_images = self.max_images if self.pack_length is not None else None
        too_much = excess(sample, sequences, self.limit, max_images)
        if too_much is not None:
            self._refuse_or_drop(too_much, left_out)
            return []
        try:
            open_up_to = self.max_pixels if self.broken == "skip" else None
            image_numbers = images.add_images(sample.images, resolutions(budgets), open_up_to)
        except ValueError as error:
            left_out.add_broken(f"sample {sample.id!r}: {error}")
            return []
        return [
            _renumber(sequence, image_numbers[sequence.resolution], number)
            if sequence.images
            else replace(sequence, sample=number)
            for sequence in sequences
        ]

    def _image_tensors(
        self, rows: list[list[ScaledSequence]], images: "_ImageTable"
    ) -> dict[str, Tensor]:
        # spans are listed in the order of the rows, not of the samples: the model meets them so
        spans = [sequence for row in rows for sequence in row]
        options = [TileOptions(resolution=side) for side in images.resolutions]
        prepared = self.processor.prepare_images(images.sources, self.max_pixels, options=options)
        tensors = prepared.entries(self.processor.reader.tiling)
        tensors["image_scales"] = torch.tensor(
            [scale for sequence in spans for scale in sequence.scales], dtype=torch.int64
        )
        tensors["image_index"] = torch.tensor(
            [image for sequence in spans for image in sequence.images], dtype=torch.int64
        )
        return tensors

    def _budgets_of(self, batch: Sequence[AnySample | Positioned]) -> tuple[Budget, ...]:
        if isinstance(self.scales, tuple):
            return self.scales  # pyright: ignore[reportReturnType] (`__post_init__` read them)
        trained = tuple(self.processor.budget(budget) for budget in self.processor.ladder)
        if self.scales == "all":
            return trained
        if not isinstance(batch[0], Positioned) or self.step_samples is None:
            raise ValueError(
                f"scales={self.scales!r} needs samples that know their position; read them through "
                "m3.data.mixture.Mixture"
            )
        return draw_budgets(self.scales, trained, self.seed, batch[0].position // self.step_samples)

    @property
    def limit(self) -> int | None:
        """Tokens a sequence may have."""
        return self.pack_length if self.max_length is None else self.max_length

    def _refuse_or_skip(self, error: ValueError, reason: str, left_out: "_LeftOut") -> None:
        if self.broken != "skip":
            raise error
        left_out.add_broken(reason)

    def _refuse_or_drop(self, too_much: str, left_out: "_LeftOut") -> None:
        if self.too_long == "refuse":
            raise ValueError(
                f"{too_much}. Raise the limit, leave the sample out, drop such: `data.too_long: "
                "drop` in a recipe, or too_long='drop' of a Collator"
            )
        left_out.add_too_long(too_much)

    def _rows(self, sequences: list[ScaledSequence]) -> list[list[ScaledSequence]]:
        if self.pack_length is None:
            return [[sequence] for sequence in sequences]
        row_members = pack(
            [len(sequence.input_ids) for sequence in sequences],
            [sequence.images for sequence in sequences],
            self.pack_length,
            self.max_images,
        )
        return [[sequences[number] for number in row] for row in row_members]


def excess(
    sample: AnySample,
    sequences: Sequence[ScaledSequence],
    max_length: int | None,
    max_images: int | None,
) -> str | None:
    """A sentence on what is too much for a row; None if the sample fits."""
    longest_sequence = max(sequences, key=lambda sequence: len(sequence.input_ids))
    length = len(longest_sequence.input_ids)
    if max_length is not None and length > max_length:
        scale_note = (
            f" at {longest_sequence.scales[0]} tokens per image" if longest_sequence.scales else ""
        )
        return f"sample {sample.id!r} has {length} tokens{scale_note}, the limit is {max_length}"
    num_images = len(set(sample.images))
    if max_images is not None and num_images > max_images:
        return f"sample {sample.id!r} has {num_images} images, a row may show {max_images}"
    return None


class _LeftOut:
    """Counts the samples that a batch lacks, and logs why."""

    def __init__(self) -> None:
        self.counts = [0, 0]

    def add_broken(self, reason: str) -> None:
        self.counts[0] += 1
        logger.warning("skipped: %s", reason)

    def add_too_long(self, reason: str) -> None:
        self.counts[1] += 1
        logger.warning("dropped: %s", reason)


class _ImageTable:
    """Numbers the different images of a batch, at each resolution, in the order of their first
    appearance.
    """

    def __init__(self) -> None:
        self.sources: list[ImageSource] = []
        self.resolutions: list[int | None] = []
        self._numbers: dict[tuple[str | Path | bytes, int | None], int] = {}

    def add_images(
        self,
        images: Sequence[str | Path | bytes],
        resolutions: Sequence[int | None],
        open_up_to: int | None,
    ) -> dict[int | None, list[int]]:
        """Numbers of a sample's images at each resolution; those of an image are neighbours.

        `open_up_to` pixels: each new one is decoded now, so that a bad one leaves no trace.
        """
        new_images = [
            image for image in dict.fromkeys(images) if (image, resolutions[0]) not in self._numbers
        ]
        new_sources: list[ImageSource] = [
            image if open_up_to is None else load_image(image, open_up_to) for image in new_images
        ]
        for image, source in zip(new_images, new_sources, strict=True):
            for resolution in resolutions:
                self._numbers[image, resolution] = len(self.sources)
                self.sources.append(source)
                self.resolutions.append(resolution)
        return {
            resolution: [self._numbers[image, resolution] for image in images]
            for resolution in resolutions
        }


def _renumber(sequence: ScaledSequence, numbers: list[int], sample: int) -> ScaledSequence:
    return replace(
        sequence, images=tuple(numbers[image] for image in sequence.images), sample=sample
    )


def _pad_id(processor: M3Processor) -> int:
    pad_token_id = processor.tokenizer.pad_token_id
    if pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
    return pad_token_id


def _row_tensors(
    rows: list[list[ScaledSequence]], pad_id: int, multiple: int, masked: bool
) -> dict[str, Tensor]:
    """`[r, l]` tensors.

    A batch of which every sample was dropped becomes one row of padding that trains nothing.
    """
    filled_lengths = [sum(len(sequence.input_ids) for sequence in row) for row in rows] or [0]
    row_length = max(multiple, -(-max(filled_lengths) // multiple) * multiple)
    row_shape = (len(filled_lengths), row_length)
    input_ids = np.full(row_shape, pad_id, dtype=np.int64)
    labels = np.full(row_shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(row_shape, dtype=np.int64)
    loss_weights = np.zeros(row_shape, dtype=np.float32)
    for row_number, row in enumerate(rows):
        row_start = 0
        for sequence in row:
            row_end = row_start + len(sequence.input_ids)
            input_ids[row_number, row_start:row_end] = sequence.input_ids
            labels[row_number, row_start:row_end] = sequence.labels
            position_ids[row_number, row_start:row_end] = np.arange(row_end - row_start)
            loss_weights[row_number, row_start:row_end] = np.where(
                sequence.labels == IGNORED, 0.0, sequence.weight
            )
            row_start = row_end
    attention_mask = (np.arange(row_length)[None] < np.asarray(filled_lengths)[:, None]).astype(
        np.int64
    )
    # 0, 1, 2 ... behind the last sequence
    padding_positions = np.arange(row_length)[None] - np.asarray(filled_lengths)[:, None]
    position_ids = np.where(attention_mask == 1, position_ids, padding_positions)
    sequence_lengths = np.zeros(
        (len(filled_lengths), max((len(row) for row in rows), default=1)), dtype=np.int64
    )
    for row_number, row in enumerate(rows):
        sequence_lengths[row_number, : len(row)] = [len(sequence.input_ids) for sequence in row]
    row_arrays = {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "sequence_lengths": sequence_lengths,
        "loss_weights": loss_weights,
    }
    if masked:
        row_arrays["attention_mask"] = attention_mask
    return {name: torch.from_numpy(array) for name, array in row_arrays.items()}
