"""Devices: the one choice of where to compute, what accelerators can do, and where a run ran.

torch knows one kind of accelerator per process (`torch.accelerator`): CUDA or ROCm ("cuda"), Apple
("mps"), Ascend through torch_npu ("npu"), Intel ("xpu"); where there is none, it is the CPU.
`m3 doctor` shows the same choice (it asks torch the same question, in an interpreter of its own).
torch is imported by the functions that ask it: the tables alone are read by help texts too.
"""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from m3.config import near_match

if TYPE_CHECKING:
    import torch

KINDS: Mapping[str, str] = {  # torch's name -> what makes it available
    "cuda": "a torch built for CUDA or ROCm, and a driver that runs it",
    "mps": "a Mac with an Apple GPU",
    "npu": "an Ascend NPU with CANN and the package torch_npu",
    "xpu": "a torch built for XPU, and Intel's driver",
    "cpu": "nothing",
}
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "deepspeed",
    "datasets",
    "tokenizers",
    "pillow",
    "numpy",
    "lmms-eval",
)
"""Packages that a run's numbers depend on."""


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
    "A800": Accelerator("A800 SXM 80GB", 312e12, 2.039e12, 80e9, "an A100 with slower links"),
    "H100 PCIe": Accelerator("H100 PCIe 80GB", 756e12, 2.0e12, 80e9, "NVIDIA H100 datasheet, "
                                                         "without its factor 2 of sparsity"),
    "H100": Accelerator("H100 SXM 80GB", 989.4e12, 3.35e12, 80e9, "NVIDIA H100 datasheet, without "
                                                                  "its factor 2 of sparsity"),
    "H800": Accelerator("H800 SXM 80GB", 989.4e12, 3.35e12, 80e9, "an H100 with slower links"),
    "H200": Accelerator("H200 SXM 141GB", 989.4e12, 4.8e12, 141e9, "NVIDIA H200 datasheet, without "
                                                                   "its factor 2 of sparsity"),
    "B200": Accelerator("B200 SXM 180GB", 2250e12, 8e12, 180e9, "NVIDIA DGX B200 datasheet, an "
                                              "eighth, without its factor 2 of sparsity"),
    "L40S": Accelerator("L40S 48GB", 362e12, 0.864e12, 48e9, "NVIDIA L40S datasheet, without its "
                                                             "factor 2 of sparsity"),
    "MI250X": Accelerator("MI250X 128GB", 383e12, 3.2768e12, 128e9, "AMD MI250X datasheet"),
    "MI300X": Accelerator("MI300X 192GB", 1307.4e12, 5.3e12, 192e9, "AMD MI300X datasheet, without "
                                                                    "its factor 2 of sparsity"),
    "910B": Accelerator(
        "Ascend 910B 64GB", 376e12, 1.6e12, 64e9,
        "approximate: half of what a 910C is said to have (cf. https://arxiv.org/abs/2506.12708); "
        "public figures differ",
    ),
}  # fmt: skip
"""By what torch's name of the device contains; the first row that fits counts."""


def accelerator(accelerator_name: str) -> Accelerator:
    """The row of the table; a ValueError lists the known ones."""
    if accelerator_name not in ACCELERATORS:
        raise ValueError(
            f"no accelerator {accelerator_name!r} in the table; known: {', '.join(ACCELERATORS)}"
        )
    return ACCELERATORS[accelerator_name]


def peak_flops(device_name: str | None = None) -> float | None:
    """16-bit peak of a device as torch calls it, by default this machine's; None if it is not in
    the table.
    """
    if device_name is None:
        import torch

        device_name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((row.flops for key, row in ACCELERATORS.items() if key in device_name), None)


def choose_device(asked: str | None = None) -> "torch.device":
    """The accelerator that torch sees, else the CPU; or what was `asked` for, such as "cpu", "cuda"
    or "cuda:1".

    Raises:
        ValueError: an unknown kind of device, one that torch does not see here, or a number beyond
            those there are.
    """
    import torch

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


def environment(command: Sequence[str]) -> dict[str, object]:
    """Machine and versions, for readers who want to repeat a run of `command` elsewhere."""
    import torch

    return {
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": installed_packages(),
        "commit": _commit(),
    }


def installed_packages() -> dict[str, str]:
    """Versions of `PACKAGES`, without those that are not installed."""
    return {
        package_name: installed
        for package_name in PACKAGES
        if (installed := _version(package_name))
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    model_names = (
        [
            info_line.split(":", 1)[1].strip()
            for info_line in cpu_info.read_text().splitlines()
            if info_line.startswith("model name")
        ]
        if cpu_info.exists()
        else []
    )
    return model_names[0] if model_names else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree that is running, when it is a git checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git_output = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return git_output.stdout.strip() or None
