"""All-scales training as data: a tokenised sample becomes a sequence per budget, of equal images.

M3 (arXiv 2405.17430) averages the loss over the scales. Here each label token of a sample with
images carries the weight 1 / (number of scales), and a text-only sample goes in once with weight 1.
The weighted mean over all label tokens of a packed batch is then M3's average, without the model
knowing about it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m3.data.tokenized import Tokenized
from m3.nesting import Budget, Tiles, resolutions
from m3.processing.images import MAX_PIXELS, ImageSource
from m3.processing.processor import M3Processor, repeats
from m3.processing.tiles import TileOptions

IGNORED = -100
"""The label that no loss counts."""

NO_TEACHER = -1
"""`teacher_index` of a token that learns from no other scale."""

ScaleMode = Literal["all", "sandwich", "random"]


@dataclass(frozen=True)
class ScaledSequence:
    """One sample at one budget.

    `scales` and `images` have one entry per placeholder span, in reading order.
    """

    input_ids: np.ndarray
    """int64 [t], every image token repeated to its count."""
    labels: np.ndarray
    """int64 [t], -100 where nothing is learned.

    Not shifted: the model compares token t + 1 with what it said at t.
    """
    scales: tuple[int, ...]
    images: tuple[int, ...]
    """Index of the image in the sample for each span; the collator renumbers them for the batch."""
    weight: float
    """Weight of each label token."""
    resolution: int | None = None
    """Resolution in pixels that its images are seen at; None is the largest."""
    sample: int = 0
    """Index of the sample in the batch, set by the collator."""

    @property
    def budget(self) -> Budget | None:
        """Budget of all its images; None without images."""
        return Budget(self.scales[0], self.resolution) if self.scales else None


def expand(
    tokenized: Tokenized,
    budgets: Sequence[Budget],
    processor: M3Processor,
    views: Mapping[int | None, Sequence[Tiles]],
    budget_weights: Mapping[Budget, float] | None = None,
    weight: float = 1.0,
) -> list[ScaledSequence]:
    """One sequence per budget, every image of a sequence at that budget; text-only samples once.

    `views` are its images as `outline_views` gives them; their numbers of tokens follow from it.
    `weight` is what the sample's label tokens weigh together over all budgets, `budget_weights`
    how they share it (default: alike).
    """
    token_ids = np.asarray(tokenized.input_ids, dtype=np.int64)
    labels = np.where(np.asarray(tokenized.labels_mask, dtype=bool), token_ids, IGNORED)
    if tokenized.num_images == 0:
        return [ScaledSequence(token_ids, labels, (), (), weight)]
    if not budgets:
        raise ValueError("no scales to expand to; name at least one")
    weight_of = {budget: (budget_weights or {}).get(budget, 1.0) for budget in budgets}
    sequences: list[ScaledSequence] = []
    for budget in budgets:
        images = views[budget.resolution]
        counts = processor.counts([budget] * len(images), images)
        repeat_counts = repeats(token_ids, processor.image_token_id, counts)
        sequences.append(
            ScaledSequence(
                input_ids=np.repeat(token_ids, repeat_counts),
                labels=np.repeat(labels, repeat_counts),
                scales=(budget.tokens,) * tokenized.num_images,
                images=tuple(range(tokenized.num_images)),
                weight=weight * weight_of[budget] / sum(weight_of.values()),
                resolution=budget.resolution,
            )
        )
    return sequences


def outline_views(
    processor: M3Processor,
    images: Sequence[ImageSource],
    budgets: Sequence[Budget],
    max_pixels: int = MAX_PIXELS,
) -> dict[int | None, list[Tiles]]:
    """Tiles of the images at each resolution of the budgets, without decoding any of them."""
    return {
        side: [
            processor.outline(image, max_pixels, options=TileOptions(resolution=side))
            for image in images
        ]
        for side in resolutions(budgets)
    }


def teacher_index(rows: Sequence[Sequence[ScaledSequence]], length: int) -> np.ndarray:
    """Flat index of the teacher of each label token, int64 [r, length].

    The teacher is the same label token in its sample's copy at the largest budget; indices go
    through the rows one after the other. -1 at the largest budget itself, in text-only samples and
    at all other tokens. A sample's label tokens are the same in the same order at every scale,
    wherever its sequences were packed.
    """
    # sample -> budgets, and the positions of its label tokens at each
    copies: dict[int, list[tuple[Budget, np.ndarray]]] = defaultdict(list)
    for row_number, row in enumerate(rows):
        row_start = row_number * length
        for sequence in row:
            if sequence.budget is not None:
                label_positions = row_start + np.flatnonzero(sequence.labels != IGNORED)
                copies[sequence.sample].append((sequence.budget, label_positions))
            row_start += len(sequence.input_ids)
    teacher_of = np.full(max(len(rows), 1) * length, NO_TEACHER, dtype=np.int64)
    for scale_copies in copies.values():
        largest_budget, teacher_positions = max(scale_copies, key=lambda copy: copy[0])
        for budget, label_positions in scale_copies:
            assert len(label_positions) == len(teacher_positions), (
                "the scales of a sample have different numbers of label tokens"
            )
            if budget < largest_budget:
                teacher_of[label_positions] = teacher_positions
    return teacher_of.reshape(-1, length)


def draw_budgets(
    mode: ScaleMode, ladder: Sequence[Budget], seed: int, step: int, between: int = 2
) -> tuple[Budget, ...]:
    """The budgets of one step, ascending.

    A function of its arguments alone, so equal on all ranks and after a resume.

    `all`: every trained budget (M3). `random`: one of them (MQT-LLaVA, arXiv 2405.19315).
    `sandwich`: the smallest, the largest and up to `between` random ones in the middle (the
    sandwich rule of universally slimmable networks, Yu and Huang 2019, arXiv 1903.05134): both ends
    bound the rest, at a fraction of the cost of `all`.
    """
    budgets = tuple(sorted(ladder))
    if not budgets:
        raise ValueError("no trained scales to draw from")
    if mode == "all":
        return budgets
    # ordered by a hash: unlike a generator's shuffle, the same in every version of every library.
    shuffled = sorted(
        budgets, key=lambda budget: hashlib.sha256(f"{seed}/{step}/{budget}".encode()).digest()
    )
    if mode == "random":
        return (shuffled[0],)
    if mode == "sandwich":
        middle = [budget for budget in shuffled if budget not in (budgets[0], budgets[-1])]
        return tuple(sorted({budgets[0], budgets[-1], *middle[:between]}))
    raise ValueError(f"unknown way to choose scales {mode!r}; expected all, sandwich or random")
