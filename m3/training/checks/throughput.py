"""Model FLOPs utilisation: floating-point operations that the model needs, over what the
accelerators could do. On a device that is not in `m3.hardware.ACCELERATORS` it is not logged.
"""

from dataclasses import dataclass

from m3.hardware import peak_flops
from m3.model import M3Config
from m3.model.cost import CostModel


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
