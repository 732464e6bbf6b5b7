"""Model FLOPs utilisation: floating-point operations that the model needs, over what the
accelerators could do.

Known peaks are those of dense bfloat16 as their makers state them (without sparsity). On others MFU
is not logged.
"""

from dataclasses import dataclass

import torch

from m3.model import M3Config
from m3.model.cost import CostModel

PEAKS: dict[str, float] = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "MI250X": 383e12,
    "MI300X": 1307e12,
    "Ascend910B": 376e12,
}
"""FLOP/s, by what the device's name contains; the first row that fits counts."""


def peak_flops(name: str | None = None) -> float | None:
    """Peak of a device called `name`, by default this machine's; None if it is not in the table."""
    if name is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known_name, peak in PEAKS.items() if known_name in name), None)


@dataclass(frozen=True)
class Meter:
    """Operations of a training step: 6 per active weight and token of the decoder, and three passes
    of the tower.

    MFU (https://arxiv.org/abs/2204.02311, appendix B) is these over the elapsed time and the peak.
    Attention between tokens and what is recomputed do not count as work.
    """

    peak: float
    active_weights: int
    tile_flops: int

    def flops(self, tokens: int, tiles: int) -> float:
        """Operations for so many tokens and tiles."""
        return 6.0 * self.active_weights * tokens + 3.0 * self.tile_flops * tiles


def meter(config: M3Config, device_name: str | None = None) -> Meter | None:
    """For a model on a device called so, by default this machine's; None where its peak is not
    known.
    """
    peak = peak_flops(device_name)
    if peak is None:
        return None
    costs = CostModel.from_config(config)
    return Meter(
        peak,
        costs.decoder.active(costs.top_k) + costs.head,
        costs.vision_flops() + costs.connector_flops(),
    )
