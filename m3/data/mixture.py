"""Several sources become one ordered data set of which any position can be asked for at once.

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

from m3.data.length_balancing import Window, deal, read_lengths
from m3.data.recipe import Data, open_source
from m3.data.sample import AnySample, SampleSource


@dataclass(frozen=True)
class Broken:
    """Stands for a sample that could not be read."""

    why: str


@dataclass(frozen=True)
class Positioned:
    """A sample and where in the training order it stands."""

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
        window: Window | None = None,
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
        _check(sizes, weights, length)
        self.sources = tuple(sources)
        self.seed = seed
        self.length = pass_length(sizes, weights) if length is None else length
        self.broken = broken
        shares = [_share(size, weight) for size, weight in zip(sizes, weights, strict=True)]
        counts = _apportion(self.length, shares)
        generator = np.random.default_rng([seed, 0])
        self._source_of = generator.permutation(
            np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        )
        self._record_of = np.empty(self.length, dtype=np.int64)
        for number, (size, weight, count) in enumerate(zip(sizes, weights, counts, strict=True)):
            self._record_of[self._source_of == number] = _records(size, weight, count, seed, number)
        if window is not None:
            window.check(sizes)
        self._window = window
        self._dealt = functools.lru_cache(maxsize=4)(self._deal)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Positioned:
        """
        Raises:
            IndexError: beyond the end.
            ValueError: the sample cannot be read, unless `broken` is `skip`.
        """
        source, record = self.place(position)
        try:
            return Positioned(position, self.sources[source][record])
        except ValueError as error:
            if self.broken == "refuse":
                raise
            return Positioned(position, Broken(str(error)))

    def place(self, position: int) -> tuple[int, int]:
        """(source, record) that stand at `position`."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of a mixture of {self.length}")
        if self._window is not None:
            number, slot = divmod(position, self._window.samples)
            position = int(self._dealt(number)[slot])
        return int(self._source_of[position]), int(self._record_of[position])

    def _deal(self, number: int) -> np.ndarray:
        """Which position each slot of a window shows.

        The last window may be short, and is then left as it is.
        """
        assert self._window is not None
        positions = np.arange(
            number * self._window.samples, min((number + 1) * self._window.samples, self.length)
        )
        if len(positions) < self._window.samples:
            return positions
        costs = self._window.costs(self._source_of[positions], self._record_of[positions])
        return positions[deal(costs, self._window.batches)]


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
        window = Window(read_lengths(Path(data.lengths), names), batch_size, devices)
    return Mixture(sources, weights, seed, steps * step_samples, data.broken, window)


def pass_length(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Positions of one pass over sources of these sizes."""
    return sum(_share(size, weight) for size, weight in zip(sizes, weights, strict=True))


def _share(size: int, weight: float) -> int:
    """Samples of one pass over a source."""
    whole, part = divmod(weight, 1)
    return size * int(whole) + _part(size, part)


def _part(size: int, part: float) -> int:
    """Rounded to the nearest whole number of samples, halves upwards."""
    return int(size * part + 0.5)


def _check(sizes: list[int], weights: list[float], length: int | None) -> None:
    if not sizes:
        raise ValueError("a mixture needs at least one source and got none")
    if 0 in sizes:
        raise ValueError(f"source {sizes.index(0)} of the mixture is empty; leave it out")
    if len(weights) != len(sizes):
        raise ValueError(f"{len(weights)} weights for {len(sizes)} sources; give one per source")
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"weights must not be negative and not all zero, got {weights}")
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        if weight > 0 and _share(size, weight) == 0:
            raise ValueError(
                f"source {number}: {weight} of {size} samples is no sample. Raise the weight, or "
                "set it to 0"
            )
    if length is not None and length < 1:
        raise ValueError(f"a mixture needs at least one position, got length={length}")


def _apportion(total: int, shares: list[int]) -> list[int]:
    """Whole numbers that add up to `total` in the proportion of `shares` (largest remainder;
    exact integers).
    """
    whole = sum(shares)
    counts = [total * share // whole for share in shares]
    remainders = [total * share % whole for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda n: (-remainders[n], n))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def _records(size: int, weight: float, count: int, seed: int, source: int) -> np.ndarray:
    """`count` record numbers below `size`, pass after pass; in a pass first the whole rounds,
    then the part.
    """
    whole, part = divmod(weight, 1)
    chosen = np.random.default_rng([seed, 2, source]).permutation(size)[: _part(size, part)]
    rounds = [np.arange(size, dtype=np.int64)] * int(whole) + ([chosen] if len(chosen) else [])
    shuffled: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    missing = count
    number = 0
    while missing > 0:
        generator = np.random.default_rng([seed, 1, source, number])
        shuffled.append(generator.permutation(rounds[number % len(rounds)])[:missing])
        missing -= len(shuffled[-1])
        number += 1
    return np.concatenate(shuffled)
