"""Devices: the one choice that every verb makes.

In: what the user asked for, if anything. Out: a `torch.device`. torch knows one kind of accelerator
per process (`torch.accelerator`): CUDA or ROCm ("cuda"), Apple ("mps"), Ascend through torch_npu
("npu"), Intel ("xpu"); where there is none, it is the CPU. `m3 doctor` shows the same choice (it
asks torch the same question, in an interpreter of its own).
"""

from collections.abc import Mapping

import torch

from m3.config import near_match

KINDS: Mapping[str, str] = {  # torch's name -> what makes it available
    "cuda": "a torch built for CUDA or ROCm, and a driver that runs it",
    "mps": "a Mac with an Apple GPU",
    "npu": "an Ascend NPU with CANN and the package torch_npu",
    "xpu": "a torch built for XPU, and Intel's driver",
    "cpu": "nothing",
}


def choose_device(asked: str | None = None) -> torch.device:
    """The accelerator that torch sees, else the CPU; or what was `asked` for, such as "cpu", "cuda"
    or "cuda:1".

    Raises:
        ValueError: an unknown kind of device, one that torch does not see here, or a number beyond
            those there are.
    """
    here = (
        torch.accelerator.current_accelerator()
        if torch.accelerator.is_available()
        else torch.device("cpu")
    )
    assert here is not None  # since one is available
    if asked is None:
        return here
    kind, colon, number = asked.partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown device {asked!r}. {near_match(kind, KINDS)}")
    if kind not in ("cpu", here.type):
        raise ValueError(
            f"device {asked!r} was asked for, but torch computes on {here.type!r} here. {kind} "
            f"needs {KINDS[kind]}; "
            "`m3 doctor` shows what is missing"
        )
    count = 1 if kind == "cpu" else torch.accelerator.device_count()
    if colon and (not number.isdigit() or int(number) >= count):
        raise ValueError(f"device {asked!r}: this machine has {count} of {kind}, numbered from 0")
    return torch.device(asked)
