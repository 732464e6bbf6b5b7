"""Length balancing: the samples of a step are dealt to its batches so that devices work equally.

In: tokens of each sample (`m3 data check --lengths FILE` measured them). Out: the order of the
samples within their step. No sample changes its step, and the order is a function of the step's
samples alone, so it is the same for any number of workers and after a resume.

Greedy, longest first, each to the batch that has least and still has room (Graham 1969, for
makespan; with a limit on their number as batches have a fixed size).
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3.files import atomic_file


@dataclass(frozen=True)
class LengthWindow:
    """Samples that are dealt among each other: one micro-step of all devices."""

    lengths: tuple[np.ndarray, ...]
    """Tokens of every record over all scales, int32 `[records]` for each source."""
    batch_size: int
    batches: int
    """Number of devices: their batches follow each other in the order of positions."""

    @property
    def samples(self) -> int:
        """Positions of a window."""
        return self.batch_size * self.batches

    def costs(self, sources: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Tokens of each (source, record), int64 `[n]`."""
        sample_costs = [
            int(self.lengths[source][record])
            for source, record in zip(sources, records, strict=True)
        ]
        return np.asarray(sample_costs, dtype=np.int64)

    def check(self, source_sizes: Sequence[int]) -> None:
        """Raise a ValueError unless there is one length for every record of every source."""
        length_counts = [len(lengths) for lengths in self.lengths]
        if length_counts != list(source_sizes):
            raise ValueError(
                f"data.lengths counts {length_counts} samples, the sources hold "
                f"{list(source_sizes)}. Measure them again with `m3 data check RECIPE --lengths "
                "FILE`"
            )


def deal_samples(costs: np.ndarray, batches: int) -> np.ndarray:
    """Sample numbers in dealt order, int64 `[n]`: first the `n / batches` of the first batch, ...

    Within a batch the original order is kept.
    """
    batch_size = len(costs) // batches
    assert batch_size * batches == len(costs), f"{len(costs)} samples for {batches} batches"
    batch_samples: list[list[int]] = [[] for _ in range(batches)]
    batch_costs = [0] * batches
    for sample in np.argsort(-costs, kind="stable").tolist():
        batch_number = min(
            (b for b in range(batches) if len(batch_samples[b]) < batch_size),
            key=lambda b: (batch_costs[b], b),
        )
        batch_samples[batch_number].append(sample)
        batch_costs[batch_number] += int(costs[sample])
    return np.asarray(
        [sample for members in batch_samples for sample in sorted(members)], dtype=np.int64
    )


def write_lengths(
    file_path: Path, lengths: Sequence[np.ndarray], source_names: Sequence[str]
) -> None:
    """Write what `read_lengths` reads."""
    with atomic_file(file_path) as temporary_path, temporary_path.open("wb") as file:
        arrays = {f"lengths_{number}": array for number, array in enumerate(lengths)}
        np.savez_compressed(
            file, allow_pickle=False, names=np.asarray(source_names, dtype=np.str_), **arrays
        )


def read_lengths(file_path: Path, source_names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Lengths that `write_lengths` wrote for these sources.

    Raises:
        ValueError: no such file, one that was not written by it, or of other sources.
    """
    if not file_path.is_file():
        raise ValueError(
            f"{file_path}: no such file; `m3 data check RECIPE --lengths {file_path}` writes it"
        )
    try:
        with np.load(file_path, allow_pickle=False) as file:
            arrays = dict(file)
        file_names = arrays["names"].tolist()
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            f"{file_path}: not a file of lengths, or damaged ({error!r}); `m3 data check RECIPE "
            f"--lengths {file_path}` writes one"
        ) from error
    if file_names != list(source_names):
        raise ValueError(
            f"{file_path}: holds the lengths of {', '.join(file_names)}; expected those of "
            f"{', '.join(source_names)}. Measure them again with `m3 data check RECIPE --lengths "
            f"{file_path}`"
        )
    return tuple(arrays[f"lengths_{number}"] for number in range(len(source_names)))
