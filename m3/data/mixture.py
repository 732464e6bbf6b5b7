"""Several sources become one ordered data set of which any position can be asked for at once.

Position is the one clock of the data: it says which sample comes, in which pass over its source, and (through the
collator) at which scales a step trains. Everything is a function of (seed, position), so a run that is resumed by
skipping positions, or read by any number of workers and ranks, sees exactly what the uninterrupted run sees.

The mixture is already shuffled: read it in order (a sequential sampler), once, with `length` = steps x samples per
step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3.data.sample import Sample, Source


@dataclass(frozen=True)
class Positioned:
    """A sample and where in the training order it stands."""

    position: int
    sample: Sample


class Mixture:
    """Map-style data set of `Positioned` samples.

    Each source gets its fraction of the positions exactly (to within one sample), spread at random over the whole
    length. A source is read in a shuffled order, every sample once before any comes twice, and shuffled anew each pass.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[int | float] | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        """
        Args:
            sources: at least one, none empty.
            weights: how much of the mixture each source makes up, in any unit; None for the sources' sizes.
            seed: of every shuffle.
            length: number of positions; None for the sum of the sources' sizes.

        Raises:
            ValueError: no sources, an empty source, weights that are negative, all zero, or not one per source.
        """
        sizes = [len(source) for source in sources]
        _check(sizes, weights, length)
        self.sources = tuple(sources)
        self.seed = seed
        self.length = sum(sizes) if length is None else length
        counts = _apportion(
            self.length, [float(size) for size in sizes] if weights is None else [float(weight) for weight in weights]
        )
        generator = np.random.default_rng([seed, 0])
        self._source_of = generator.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), counts))
        self._record_of = np.empty(self.length, dtype=np.int64)
        for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            self._record_of[self._source_of == number] = _passes(size, count, seed, number)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Positioned:
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of a mixture of {self.length}")
        source = self.sources[int(self._source_of[position])]
        return Positioned(position, source[int(self._record_of[position])])


def _check(sizes: list[int], weights: Sequence[int | float] | None, length: int | None) -> None:
    if not sizes:
        raise ValueError("a mixture needs at least one source and got none")
    if 0 in sizes:
        raise ValueError(f"source {sizes.index(0)} of the mixture is empty; leave it out")
    if weights is not None:
        if len(weights) != len(sizes):
            raise ValueError(f"{len(weights)} weights for {len(sizes)} sources; give one per source")
        if any(weight < 0 for weight in weights) or sum(weights) <= 0:
            raise ValueError(f"weights must not be negative and not all zero, got {list(weights)}")
    if length is not None and length < 1:
        raise ValueError(f"a mixture needs at least one position, got length={length}")


def _apportion(total: int, weights: list[float]) -> list[int]:
    """Whole numbers that add up to `total` in the proportion of `weights` (largest remainder)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda n: (counts[n] - exact[n], n))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def _passes(size: int, count: int, seed: int, source: int) -> np.ndarray:
    """`count` record numbers below `size`: one permutation per pass, the last one cut."""
    passes = -(-count // size)
    shuffled = [np.random.default_rng([seed, 1, source, number]).permutation(size) for number in range(passes)]
    return np.concatenate([np.empty(0, dtype=np.int64), *shuffled])[:count]
