"""Mixture of several sources: one ordered data set, of which any position can be read at once.

Position is the one clock of the data: it says which sample comes, in which pass over its source,
and (through the collator) at which scales a step trains. Everything is a function of (seed,
position), so a run that is resumed by skipping positions, or read by any number of workers and
ranks, sees exactly what the uninterrupted run sees.

The mixture is already shuffled: read it in order (a sequential sampler), once, with `length` =
steps x samples per step.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from m3.data.length_balancing import LengthWindow, deal_samples, read_lengths
from m3.data.recipe import Data, open_source
from m3.data.sample import AnySample, SampleSource


@dataclass(frozen=True)
class Broken:
    """Stands for a sample that could not be read."""

    reason: str


@dataclass(frozen=True)
class Positioned:
    """A sample and its position in the training order."""

    position: int
    sample: AnySample | Broken


class Mixture:
    """Map-style data set of `Positioned` samples.

    A pass over a source reads it `weight` times: 1.5 is every sample once, in a shuffled order, and
    then a half of them once more. The half is drawn with the seed and is the same in every pass.
    Each source gets its share of the positions exactly (to within one sample), spread at random
    over the whole length, so `length` = `pass_length` is one pass over everything.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        weights: Sequence[int | float] | None = None,
        seed: int = 0,
        length: int | None = None,
        broken: Literal["refuse", "skip"] = "refuse",
        window: LengthWindow | None = None,
    ) -> None:
        """
        Args:
            sources: at least one, none empty.
            weights: how many times each is read in a pass; None for once.
            seed: of every shuffle.
            length: number of positions; None for one pass.
            broken: whether a sample that cannot be read raises, or comes as `Broken`.
            window: deals the samples of a step so that all batches get about equally many tokens.

        Raises:
            ValueError: no sources, an empty source, weights that are negative, all zero, so small
                that no sample is left, or not one per source; lengths that do not fit the sources.
        """
        sizes = [len(source) for source in sources]
        weights = [1.0] * len(sizes) if weights is None else [float(weight) for weight in weights]
        _check_shares(sizes, weights, length)
        self.sources = tuple(sources)
        self.seed = seed
        self.length = pass_length(sizes, weights) if length is None else length
        self.broken = broken
        pass_shares = [
            _pass_share(source_size, weight)
            for source_size, weight in zip(sizes, weights, strict=True)
        ]
        counts = _apportion_counts(self.length, pass_shares)
        source_generator = np.random.default_rng([seed, 0])
        self._source_of = source_generator.permutation(
            np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        )
        self._record_of = np.empty(self.length, dtype=np.int64)
        for source_number, (source_size, weight, source_count) in enumerate(
            zip(sizes, weights, counts, strict=True)
        ):
            self._record_of[self._source_of == source_number] = _record_order(
                source_size, weight, source_count, seed, source_number
            )
        if window is not None:
            window.check(sizes)
        self._window = window
        self._dealt_positions = functools.lru_cache(maxsize=4)(self._deal_window)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Positioned:
        """
        Raises:
            IndexError: beyond the end.
            ValueError: the sample cannot be read, unless `broken` is `skip`.
        """
        source, record = self.record_at(position)
        try:
            return Positioned(position, self.sources[source][record])
        except ValueError as error:
            if self.broken == "refuse":
                raise
            return Positioned(position, Broken(str(error)))

    def record_at(self, position: int) -> tuple[int, int]:
        """Number of the source, and of its record, at `position`."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of a mixture of {self.length}")
        if self._window is not None:
            window_number, slot = divmod(position, self._window.samples)
            position = int(self._dealt_positions(window_number)[slot])
        return int(self._source_of[position]), int(self._record_of[position])

    def _deal_window(self, window_number: int) -> np.ndarray:
        """Positions in dealt order: slot n of the window takes the n-th of them.

        The last window may be short, and is then left as it is.
        """
        assert self._window is not None
        positions = np.arange(
            window_number * self._window.samples,
            min((window_number + 1) * self._window.samples, self.length),
        )
        if len(positions) < self._window.samples:
            return positions
        costs = self._window.costs(self._source_of[positions], self._record_of[positions])
        return positions[deal_samples(costs, self._window.batches)]


def read_mixture(
    data: Data,
    *,
    seed: int,
    step_samples: int,
    steps: int | None = None,
    epochs: float | None = None,
    devices: int = 1,
    batch_size: int = 1,
) -> Mixture:
    """Open every source of a recipe.

    Args:
        data: of the recipe.
        seed: of every shuffle.
        step_samples: samples of one optimiser step over all devices.
        steps, epochs: how long; of `epochs` passes the last step is filled up.
        devices, batch_size: of a micro-step, over which samples are dealt by length (with
            `data.lengths`).

    Raises:
        ValueError: a source cannot be opened, or the lengths are those of other data.
    """
    used_sources = data.used_sources
    sources = [open_source(source) for source in used_sources]
    weights = [source.weight for source in used_sources]
    if steps is None:
        samples_per_pass = pass_length([len(source) for source in sources], weights)
        steps = math.ceil(samples_per_pass * (1.0 if epochs is None else epochs) / step_samples)
    window = None
    if data.lengths is not None:
        names = [source.name for source in used_sources]
        window = LengthWindow(read_lengths(Path(data.lengths), names), batch_size, devices)
    return Mixture(sources, weights, seed, steps * step_samples, data.broken, window)


def pass_length(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Positions of one pass over sources of these sizes."""
    return sum(_pass_share(size, weight) for size, weight in zip(sizes, weights, strict=True))


def _pass_share(source_size: int, weight: float) -> int:
    """Samples of one pass over a source."""
    whole_passes, rest_share = divmod(weight, 1)
    return source_size * int(whole_passes) + _round_share(source_size, rest_share)


def _round_share(source_size: int, share: float) -> int:
    """A share of the samples, rounded to the nearest whole number, halves upwards."""
    return int(source_size * share + 0.5)


def _check_shares(source_sizes: list[int], weights: list[float], length: int | None) -> None:
    if not source_sizes:
        raise ValueError("a mixture needs at least one source and got none")
    if 0 in source_sizes:
        raise ValueError(f"source {source_sizes.index(0)} of the mixture is empty; leave it out")
    if len(weights) != len(source_sizes):
        raise ValueError(
            f"{len(weights)} weights for {len(source_sizes)} sources; give one per source"
        )
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"weights must not be negative and not all zero, got {weights}")
    for source_number, (source_size, weight) in enumerate(zip(source_sizes, weights, strict=True)):
        if weight > 0 and _pass_share(source_size, weight) == 0:
            raise ValueError(
                f"source {source_number}: {weight} of {source_size} samples is no sample. Raise "
                "the weight, or set it to 0"
            )
    if length is not None and length < 1:
        raise ValueError(f"a mixture needs at least one position, got length={length}")


def _apportion_counts(total: int, pass_shares: list[int]) -> list[int]:
    """Whole numbers that add up to `total` in the proportion of `pass_shares`.

    By largest remainder, in exact integers.
    """
    share_sum = sum(pass_shares)
    counts = [total * share // share_sum for share in pass_shares]
    remainders = [total * share % share_sum for share in pass_shares]
    by_remainder = sorted(range(len(pass_shares)), key=lambda n: (-remainders[n], n))
    for source_number in by_remainder[: total - sum(counts)]:
        counts[source_number] += 1
    return counts


def _record_order(
    source_size: int, weight: float, num_records: int, seed: int, source_number: int
) -> np.ndarray:
    """`num_records` numbers below `source_size`, pass after pass.

    A pass is its whole rounds first, and then the rest.
    """
    whole_rounds, rest_share = divmod(weight, 1)
    drawn_records = np.random.default_rng([seed, 2, source_number]).permutation(source_size)[
        : _round_share(source_size, rest_share)
    ]
    round_records = [np.arange(source_size, dtype=np.int64)] * int(whole_rounds) + (
        [drawn_records] if len(drawn_records) else []
    )
    shuffled_records: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    num_missing = num_records
    round_number = 0
    while num_missing > 0:
        round_generator = np.random.default_rng([seed, 1, source_number, round_number])
        shuffled_records.append(
            round_generator.permutation(round_records[round_number % len(round_records)])[
                :num_missing
            ]
        )
        num_missing -= len(shuffled_records[-1])
        round_number += 1
    return np.concatenate(shuffled_records)
