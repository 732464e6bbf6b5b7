"""A recipe's data becomes one `Mixture`.

In: `m3/data/recipe.py:Data` and how much is read; out: all of it, in order.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from m3.data.balance import Window, read_lengths
from m3.data.formats import open_source
from m3.data.mixture import Mixture, pass_length
from m3.data.recipe import Data, Source


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
    """Opens every source.

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
    read = [source for source in data.listed if source.weight > 0]
    sources = [open_source(source) for source in read]
    weights = [source.weight for source in read]
    if steps is None:
        one = pass_length([len(source) for source in sources], weights)
        steps = math.ceil(one * (1.0 if epochs is None else epochs) / step_samples)
    window = None
    if data.lengths is not None:
        window = Window(read_lengths(Path(data.lengths), lengths_names(read)), batch_size, devices)
    return Mixture(sources, weights, seed, steps * step_samples, data.broken, window)


def lengths_names(sources: Sequence[Source]) -> list[str]:
    """What a file of lengths calls its sources."""
    return [f"{source.format}:{source.path}" for source in sources]
