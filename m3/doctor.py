"""`m3 doctor`: what this machine has, what is missing or does not fit, and what to do about it.

`gather` looks (in subprocesses where an import can fail or crash); `examine` judges what was seen
and touches nothing.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3.optional import EXTRAS

Accelerator = Literal["CUDA", "ROCm", "NPU", "MPS", "XPU", "CPU"]
State = Literal["OK", "warning", "problem"]

PYTHON = (3, 11)
TORCH = (2, 8)
TRANSFORMERS = ((5, 23), (5, 24))
LMMS_EVAL = "0.7.3"
MEMORY_GB, DISK_GB = 4.0, 3.0
"""Below these the tiny model's quickstart is not comfortable."""
LONGEST_BUILD = 1800.0
"""Seconds. None of DeepSpeed's operators takes longer to compile."""
ACCELERATORS: Mapping[str, Accelerator] = {
    "cuda": "CUDA",
    "mps": "MPS",
    "npu": "NPU",
    "xpu": "XPU",
    "cpu": "CPU",
}
"""By torch's name of the device."""
MUST_IMPORT = ("torchvision", "timm")
"""Packages that others import when they are installed, so that a broken one breaks transformers
or accelerate.
"""

_TORCH_PROBE = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "hip": torch.version.hip,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "device": torch.accelerator.current_accelerator().type
    if "accelerator" in dir(torch) and torch.accelerator.is_available()
    else "cpu",
}))
"""


@dataclass(frozen=True)
class Torch:
    """Facts about torch, from a fresh Python process.

    `cuda`, `hip`: what it was built for; `gpus`: names of those it can use.

    `device`: what `m3.hardware.choose_device` chooses.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    gpus: tuple[str, ...] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Facts:
    """Everything that the checks look at.

    `torch` is the error text where its import failed; `import_errors` holds failed imports alone;
    `build_locks`: age in seconds of those that no process holds.
    """

    python: tuple[int, int, int]
    torch: Torch | str
    versions: Mapping[str, str]
    import_errors: Mapping[str, str]
    lmms_eval_missing: tuple[str, ...]
    plugin_found: bool
    nvidia_driver: bool
    cores: int
    memory_gb: float
    disk_gb: float
    build_locks: Mapping[Path, float]


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    state: State
    finding: str
    advice: str = ""


def main(argv: list[str]) -> int:
    """Print the table; 1 if there is a problem, else 0."""
    argparse.ArgumentParser(
        prog="m3 doctor", description="Check this machine and what is installed."
    ).parse_args(argv)
    facts = gather()
    checks = examine(facts)
    print(render(checks))
    print("\nRecommended here:\n" + "\n".join(f"  {line}" for line in recommend(facts)))
    return int(any(check.state == "problem" for check in checks))


def gather() -> Facts:
    """Look at the machine and at this Python's packages."""
    package_names = [dist.metadata["Name"] for dist in importlib.metadata.distributions()]
    # what a broken removal leaves has no name
    installed = {name.lower().replace("_", "-") for name in package_names if name}
    names = sorted(
        installed & {*EXTRAS, *MUST_IMPORT, "transformers", "lmms-eval", "flash-attn", "torch-npu"}
    )
    import_errors = {name: import_error(name) for name in MUST_IMPORT if name in installed}
    plugins = importlib.metadata.entry_points(group="lmms_eval.models", name="m3")
    return Facts(
        python=sys.version_info[:3],
        torch=probe_torch(),
        versions={name: importlib.metadata.version(name) for name in names},
        import_errors={name: error for name, error in import_errors.items() if error},
        lmms_eval_missing=_missing_requirements("lmms-eval", installed)
        if "lmms-eval" in installed
        else (),
        plugin_found=len(plugins) > 0,
        nvidia_driver=shutil.which("nvidia-smi") is not None,
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_gb=_memory_gb(),
        disk_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
        build_locks=unheld_build_locks(),
    )


def probe_torch(python: str = sys.executable) -> Torch | str:
    """Ask a fresh interpreter for its torch; the last line of the error where it has none that
    imports.
    """
    ran = subprocess.run([python, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if ran.returncode:
        return _last_line(ran.stderr, ran.returncode)
    probe_output = json.loads(ran.stdout.splitlines()[-1])
    return Torch(**{**probe_output, "gpus": tuple(probe_output["gpus"])})


def import_error(module: str, python: str = sys.executable) -> str:
    """The last line of what `import module` says in a fresh interpreter; empty where it
    succeeds.
    """
    ran = subprocess.run(
        [python, "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    return _last_line(ran.stderr, ran.returncode) if ran.returncode else ""


def examine(facts: Facts) -> list[Check]:
    """Judge what was seen: one check per line of the table."""
    return [
        _python(facts),
        _torch(facts),
        *(
            _importable(facts, name)
            for name in MUST_IMPORT
            if name == "torchvision" or name in facts.versions
        ),
        _transformers(facts),
        _lmms_eval(facts),
        *(_extra(facts, name) for name in EXTRAS),
        _flash_attention(facts),
        _enough(
            "memory",
            facts.memory_gb,
            MEMORY_GB,
            "close other programs, or train with a smaller data.pack_length",
        ),
        _enough("disk (free, here)", facts.disk_gb, DISK_GB, "free some, or work on another disk"),
        Check("cores", "OK", str(facts.cores)),
        *(_build_lock(lock, age) for lock, age in facts.build_locks.items()),
    ]


def accelerator(facts: Facts) -> Accelerator:
    """Name of the device that torch will compute on."""
    if not isinstance(facts.torch, Torch):
        return "CPU"
    if facts.torch.device == "cuda" and facts.torch.hip:
        return "ROCm"
    return ACCELERATORS[facts.torch.device]


def recommend(facts: Facts) -> list[str]:
    """Settings for this machine, as lines to copy."""
    kind = accelerator(facts)
    if kind == "CPU":
        return [
            f"export OMP_NUM_THREADS={facts.cores}",
            "hardware.precision=float32   (in a recipe)",
        ]
    lines = ["hardware.precision=bfloat16   (in a recipe)"]
    if kind == "CUDA" and "flash-attn" in facts.versions:
        lines.append("attention=flash_attention_2   (in lmms-eval's --model_args)")
    if isinstance(facts.torch, Torch) and len(facts.torch.gpus) > 1:
        lines.append(f"torchrun --nproc_per_node {len(facts.torch.gpus)} -m m3.cli train RECIPE")
    return lines


def render(checks: list[Check]) -> str:
    """The table as text, what to do under the line it belongs to."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.name:<{width}}  {check.finding}")
        if check.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {check.advice}")
    count = {
        state: sum(check.state == state for check in checks) for state in ("problem", "warning")
    }
    return "\n".join([*lines, "", f"{count['problem']} problems, {count['warning']} warnings"])


def _python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < PYTHON:
        return Check(
            "Python",
            "problem",
            version,
            "install Python 3.11 or newer and make the environment with it",
        )
    return Check("Python", "OK", f"{version} on {platform.machine()} {platform.system()}")


def _torch(facts: Facts) -> Check:
    torch = facts.torch
    if isinstance(torch, str):
        return Check("torch", "problem", torch, "bash scripts/install.sh")
    built = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "CPU"
    kind = accelerator(facts)
    named = {"MPS": "Apple GPU", "NPU": "Ascend NPU", "XPU": "Intel GPU"}
    using = ", ".join(torch.gpus) or named.get(kind, "the CPU")
    summary = f"{torch.version} (built for {built}; computes on {using}, device {torch.device!r})"
    if _numbers(torch.version) < TORCH:
        return Check("torch", "problem", summary, f"pip install 'torch>={_dotted(TORCH)}'")
    if facts.nvidia_driver and not torch.cuda:
        return Check(
            "torch",
            "problem",
            summary,
            "this machine has an NVIDIA GPU: pip install --force-reinstall torch",
        )
    if facts.nvidia_driver and not torch.gpus:
        advice = f"the driver does not run CUDA {torch.cuda}: update it, or install a torch for an older CUDA"
        return Check("torch", "problem", summary, f"{advice} (https://pytorch.org/get-started)")
    return Check("torch", "OK", summary)


def _importable(facts: Facts, name: str) -> Check:
    if name not in facts.versions:
        return Check(
            name, "OK", "not installed: images go through PIL, which gives the same pixels"
        )
    if name in facts.import_errors:
        present = " ".join(
            package_name for package_name in MUST_IMPORT if package_name in facts.versions
        )
        cure = f"pip uninstall -y {present}   (M3 needs neither)"
        if facts.nvidia_driver:
            cure = "pip install --force-reinstall torch torchvision"
        finding = f"{facts.versions[name]} does not import: {facts.import_errors[name]}"
        return Check(
            name,
            "problem",
            finding,
            f"it fits another torch, and what imports it fails too (transformers): {cure}",
        )
    return Check(name, "OK", facts.versions[name])


def _transformers(facts: Facts) -> Check:
    low, high = TRANSFORMERS
    version = facts.versions.get("transformers")
    cure = f"pip install 'transformers>={_dotted(low)},<{_dotted(high)}'"
    if version is None:
        return Check("transformers", "problem", "not installed", cure)
    if _numbers(version) < low:
        return Check("transformers", "problem", version, f"too old: {cure}")
    if _numbers(version) >= high:
        return Check(
            "transformers", "warning", version, f"newer than any tested: if something fails, {cure}"
        )
    return Check("transformers", "OK", version)


def _lmms_eval(facts: Facts) -> Check:
    version = facts.versions.get("lmms-eval")
    if version is None:
        advice = "`m3 sweep` needs it: bash scripts/install.sh, or pip install -e '.[eval]' where torchvision imports"
        return Check("lmms-eval", "warning", "not installed", advice)
    if version != LMMS_EVAL:
        return Check(
            "lmms-eval",
            "warning",
            version,
            f"tested with {LMMS_EVAL}: pip install lmms-eval=={LMMS_EVAL}",
        )
    if not facts.plugin_found:
        advice = "`--model m3` is unknown to it: pip install --no-deps -e . in the root of this repository"
        return Check("lmms-eval", "problem", version, advice)
    if facts.lmms_eval_missing:
        finding = f"{version}, slim: {len(facts.lmms_eval_missing)} of its packages are left out"
        return Check(
            "lmms-eval",
            "OK",
            f"{finding} (m3_tiny runs; if another task misses one, pip install that one)",
        )
    return Check("lmms-eval", "OK", version)


def _extra(facts: Facts, name: str) -> Check:
    extra, purpose = EXTRAS[name]
    if name in facts.versions:
        return Check(name, "OK", facts.versions[name])
    state: State = (
        "warning"
        if extra == "train" or (extra == "deepspeed" and accelerator(facts) == "CUDA")
        else "OK"
    )
    return Check(name, state, "not installed", f"for {purpose}: pip install -e '.[{extra}]'")


def _flash_attention(facts: Facts) -> Check:
    version = facts.versions.get("flash-attn", "not installed")
    if accelerator(facts) == "CUDA" and "flash-attn" not in facts.versions:
        return Check(
            "flash-attn", "OK", version, "optional, faster on long packs: pip install flash-attn"
        )
    return Check("flash-attn", "OK", version)


def _enough(name: str, gigabytes: float, least: float, advice: str) -> Check:
    amount = f"{gigabytes:.1f} GB"
    return (
        Check(name, "OK", amount) if gigabytes >= least else Check(name, "warning", amount, advice)
    )


def unheld_build_locks() -> dict[Path, float]:
    """Locks of torch's extension builds that no process of this machine holds, with their age.

    There is one file `lock` per extension, which its process holds open while it compiles
    (torch/utils/file_baton.py) and removes behind it; whoever needs the extension waits for that.
    """
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch_extensions"
    locks = cache.glob(f"{version}*/*/lock") if folder is None else Path(folder).glob("*/lock")
    ages = {}
    for lock in sorted(locks):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue  # just released
        if not _is_open(lock):
            ages[lock] = age
    return ages


def _is_open(path: Path) -> bool:
    """Tell whether a process of this machine has the file open; False where the system does not
    say (no /proc).
    """
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path.resolve():
                return True
        except OSError:
            continue  # another user's process, or one that has ended
    return False


def _build_lock(lock: Path, age: float) -> Check:
    finding = (
        f"{lock} says that {lock.parent.name} is being compiled, for {age:.0f} s, and no "
        "process of this machine does so"
    )
    if age > LONGEST_BUILD:
        advice = "DeepSpeed would wait for it for ever. A killed process left it: delete it"
        return Check("build lock", "problem", finding, advice)
    advice = "DeepSpeed waits for it. Unless another machine compiles there, delete it"
    return Check("build lock", "warning", finding, advice)


def _missing_requirements(package: str, installed: set[str]) -> tuple[str, ...]:
    required = [
        requirement
        for requirement in importlib.metadata.requires(package) or []
        if "extra ==" not in requirement
    ]
    names = {
        requirement.split(";")[0]
        .split("[")[0]
        .strip(" ()<>=!~.0123456789,")
        .lower()
        .replace("_", "-")
        for requirement in required
    }
    return tuple(sorted(names - installed))


def _memory_gb() -> float:
    """Physical memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    return total / 1e9


def _numbers(version: str) -> tuple[int, ...]:
    """`5.18.0.dev0+cpu` -> (5, 18, 0)"""
    components = version.partition("+")[0].split(".")
    return tuple(int(component) for component in components[:3] if component.isdigit())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _last_line(text: str, returncode: int) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"exit code {returncode}"
