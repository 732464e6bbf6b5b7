"""Lower bound of the latency on a named accelerator: an estimate, never a measurement.

In: a `Cost` and a row of `m3.hardware.ACCELERATORS`. Out: `Roofline`.

Each stage takes the longer of computing (operations / peak) and moving (parameters read and cache
read or written / bandwidth), and the stages follow each other (Williams et al., "Roofline",
https://doi.org/10.1145/1498765.1498785; the estimate of M3's Table 9 is of this kind). Activations,
kernel launches and communication are left out, so a real machine is
slower: one to three times where batches are large, much more where launches dominate.
"""

from dataclasses import dataclass

from m3.hardware import Accelerator
from m3.model.cost import Cost


@dataclass(frozen=True)
class Roofline:
    """Lower bounds in seconds, for a whole batch."""

    accelerator: str
    first_token_s: float
    token_s: float
    # whether the prefill is held up by computing; else by reading the parameters
    is_compute_bound: bool


def roofline(cost: Cost, device: Accelerator) -> Roofline:
    """The estimate of the module docstring for 16-bit weights, whatever format `cost` counts:
    the table's peaks are of that.
    """

    def seconds(flops: int, moved: int) -> float:
        return max(flops / device.flops, moved * 2 / cost.itemsize / device.bandwidth)

    moved = cost.prefill_parameter_bytes + cost.kv_cache_bytes
    first_token_s = (
        seconds(cost.vision_flops, cost.vision_parameter_bytes)
        + seconds(cost.connector_flops, cost.connector_parameter_bytes)
        + seconds(cost.prefill_flops, moved)
    )
    token = seconds(cost.token_flops, cost.token_parameter_bytes + cost.kv_cache_bytes)
    is_compute_bound = seconds(cost.prefill_flops, 0) > seconds(0, moved)
    return Roofline(device.name, first_token_s, token, is_compute_bound)
