"""Model FLOPs utilisation: floating-point operations that the model needs, over what the accelerators could do.

Known peaks are those of dense bfloat16 as their makers state them (without sparsity). On others MFU is not logged.
"""

import torch

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
    """Of a device called `name`, by default this machine's; None if it is not in the table."""
    if name is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def utilisation(flops_per_token: float, tokens_per_second: float, devices: int, peak: float) -> float:
    """MFU (https://arxiv.org/abs/2204.02311, appendix B): recomputation does not count as work."""
    return flops_per_token * tokens_per_second / (devices * peak)
