"""Equal work for every device: the samples of a step are dealt to its batches by length.

Comes in: how many tokens each sample costs (`m3 data check --lengths FILE` measured it). Goes out:
which sample takes which place within its step. No sample changes its step, and the deal is a
function of the step's samples alone, so it is the same for any number of workers and after a
resume.

Greedy, longest first, each to the batch that has least and still has room (Graham 1969, for
makespan; with a limit on their number as batches have a fixed size).
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Window:
    """The samples that are dealt among each other: one micro-step of all devices."""

    lengths: tuple[np.ndarray, ...]
    """Of each source: tokens of every record over all scales, int32 `[records]`."""
    batch_size: int
    batches: int
    """Number of devices: their batches follow each other in the order of positions."""

    @property
    def samples(self) -> int:
        """Positions of a window."""
        return self.batch_size * self.batches

    def costs(self, sources: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Tokens of each (source, record), int64 `[n]`."""
        found = [
            int(self.lengths[source][record])
            for source, record in zip(sources, records, strict=True)
        ]
        return np.asarray(found, dtype=np.int64)

    def check(self, sizes: Sequence[int]) -> None:
        """Raises a ValueError unless there is one length for every record of every source."""
        counted = [len(lengths) for lengths in self.lengths]
        if counted != list(sizes):
            raise ValueError(
                f"data.lengths counts {counted} samples, the sources hold {list(sizes)}. Measure "
                "them again with "
                "`m3 data check RECIPE --lengths FILE`"
            )


def deal(costs: np.ndarray, batches: int) -> np.ndarray:
    """Sample numbers in dealt order, int64 `[n]`: the first `n / batches` of them make up the first
    batch, and so on.

    Within a batch the original order is kept.
    """
    room = len(costs) // batches
    assert room * batches == len(costs), f"{len(costs)} samples for {batches} batches"
    hands: list[list[int]] = [[] for _ in range(batches)]
    sums = [0] * batches
    for sample in np.argsort(-costs, kind="stable").tolist():
        batch = min((b for b in range(batches) if len(hands[b]) < room), key=lambda b: (sums[b], b))
        hands[batch].append(sample)
        sums[batch] += int(costs[sample])
    return np.asarray([sample for hand in hands for sample in sorted(hand)], dtype=np.int64)


def write_lengths(path: Path, lengths: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Writes aside, then renames into place."""
    aside = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("wb") as file:
        arrays = {f"lengths_{number}": array for number, array in enumerate(lengths)}
        np.savez_compressed(
            file, allow_pickle=False, names=np.asarray(names, dtype=np.str_), **arrays
        )
    aside.replace(path)


def read_lengths(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """What `write_lengths` wrote for these sources.

    Raises:
        ValueError: no such file, one that was not written by it, or of other sources.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `m3 data check RECIPE --lengths {path}` writes it")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        found = arrays["names"].tolist()
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
            f"{path}: not a file of lengths, or damaged ({error!r}); `m3 data check RECIPE "
            f"--lengths {path}` writes one"
        ) from error
    if found != list(names):
        raise ValueError(
            f"{path}: holds the lengths of {', '.join(found)}; expected those of "
            f"{', '.join(names)}. Measure them "
            f"again with `m3 data check RECIPE --lengths {path}`"
        )
    return tuple(arrays[f"lengths_{number}"] for number in range(len(names)))
