"""The one choice of a device."""

import pytest
import torch

from m3.hardware import KINDS, choose_device

HERE = (
    torch.accelerator.current_accelerator()
    if torch.accelerator.is_available()
    else torch.device("cpu")
)
ABSENT = next(kind for kind in KINDS if kind not in ("cpu", HERE.type))


def test_nothing_asked_is_what_torch_sees() -> None:
    assert choose_device() == HERE


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cdua", r"unknown device 'cdua'. Did you mean 'cuda'\?"),
        ("gpu0:1", "unknown device 'gpu0:1'"),
        (
            ABSENT,
            f"device '{ABSENT}' was asked for, but torch computes on '{HERE.type}' here. "
            f"{ABSENT} needs",
        ),
        ("cpu:3", "this machine has 1 of cpu, numbered from 0"),
        ("cpu:x", "numbered from 0"),
    ],
)
def test_what_is_not_there_is_refused(asked: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(asked)


def test_npu_names_its_package() -> None:
    assert "torch_npu" in KINDS["npu"]
