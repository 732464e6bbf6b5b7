"""Lower bound of the latency on a named accelerator: an estimate, never a measurement.

In: a `Cost` and a row of `ACCELERATORS`. Out: `Roofline`.

Each stage takes the longer of computing (operations / peak) and moving (parameters read and cache
read or written / bandwidth), and the stages follow each other (Williams et al., "Roofline",
https://doi.org/10.1145/1498765.1498785; the estimate of M3's Table 9 is of this kind). Activations,
kernel launches and communication are left out, so a real machine is
slower: one to three times where batches are large, much more where launches dominate.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from m3.model.cost import Cost


@dataclass(frozen=True)
class Accelerator:
    """One device.

    `flops`: dense 16-bit matrix operations per second, without sparsity; `bandwidth`: bytes per
    second.
    """

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float
    source: str


ACCELERATORS: Mapping[str, Accelerator] = {
    "V100": Accelerator("V100 SXM2 32GB", 125e12, 0.9e12, 32e9, "NVIDIA V100 datasheet, January "
                                                                "2020"),
    "A100": Accelerator("A100 SXM 80GB", 312e12, 2.039e12, 80e9, "NVIDIA A100 datasheet, June 2021"),
    "H100": Accelerator("H100 SXM 80GB", 989.4e12, 3.35e12, 80e9, "NVIDIA H100 datasheet, without "
                                                                  "its factor 2 of sparsity"),
    "H200": Accelerator("H200 SXM 141GB", 989.4e12, 4.8e12, 141e9, "NVIDIA H200 datasheet, without "
                                                                   "its factor 2 of sparsity"),
    "910B": Accelerator(
        "Ascend 910B 64GB", 376e12, 1.6e12, 64e9,
        "approximate: half of what a 910C is said to have (cf. https://arxiv.org/abs/2506.12708); "
        "public figures differ",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Roofline:
    """Lower bounds in seconds, for a whole batch."""

    accelerator: str
    first_token_s: float
    token_s: float
    # whether the prefill is held up by computing; else by reading the parameters
    is_compute_bound: bool


def accelerator(accelerator_name: str) -> Accelerator:
    """The row of the table; a ValueError lists the known ones."""
    if accelerator_name not in ACCELERATORS:
        raise ValueError(
            f"no accelerator {accelerator_name!r} in the table; known: {', '.join(ACCELERATORS)}"
        )
    return ACCELERATORS[accelerator_name]


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
