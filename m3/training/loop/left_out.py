"""Samples that are left out of a run, where its recipe allows it: counted, and never all of them.

in: the batches of a step, of which each may say how many it lacks (`left_out`, m3/data/collate.py);
    out: rows of the metrics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from m3.training.loop.distributed import sum_over_processes

LEFT_OUT = ("left_out_broken", "left_out_too_long")
"""Names in the metrics of what a batch's `left_out` counts."""


class LeftOut:
    """Counts since the last line of metrics, of this process until they are collected."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None  # int64 [2] once a batch says it
        self._samples = 0

    def take(self, batches: Sequence[dict[str, Tensor]], batch_size: int) -> None:
        """Takes `left_out` from the batches, since it is no input of the model."""
        self._samples += len(batches) * batch_size
        for batch in batches:
            if "left_out" in batch:
                left_counts = batch.pop("left_out").cpu()
                self._counts = left_counts if self._counts is None else self._counts + left_counts

    def collect(self, step: int, device: torch.device) -> dict[str, int]:
        """Samples of all devices that were left out; nothing where the recipe allows none.

        Every process comes here.

        Raises:
            ValueError: every sample was left out.
        """
        if self._counts is None:
            return {}
        own_counts = torch.cat([self._counts, torch.tensor([self._samples])])
        broken, too_long, samples = sum_over_processes(own_counts.to(device)).tolist()
        self._counts, self._samples = torch.zeros_like(self._counts), 0
        if broken + too_long == samples:
            raise ValueError(
                f"step {step}: all {samples} samples since the last line of metrics were left out "
                f"({broken} broken, "
                f"{too_long} too long), so nothing was trained; `m3 data check` says why"
            )
        return dict(zip(LEFT_OUT, (broken, too_long), strict=True))
