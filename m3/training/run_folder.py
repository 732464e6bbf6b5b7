"""The folder of a run: `recipe.yaml`, `environment.json`, `metrics.jsonl`, `checkpoints/`.

Runs explain themselves.

Files are written aside and renamed, so none is ever half-written; the metrics are appended a line
at a time, and a resumed run first drops the lines that lie beyond its checkpoint.
"""

import difflib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from m3.config import dump, load
from m3.training.distributed import world
from m3.training.recipe import Recipe, TowerRecipe

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
)

WHOLE = "WHOLE"
"""Name of the empty file that a checkpoint gets last."""


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.final = self.checkpoints / "final"
        self.adapter = self.checkpoints / "adapter"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Writes `name` aside, then renames it into place."""
        aside = self.path / f".{name}.{os.getpid()}"
        aside.write_text(text)
        aside.replace(self.path / name)

    def check(self, recipe: Recipe | TowerRecipe) -> None:
        """Looks whether the folder is free for `recipe`.

        A key that the stored recipe lacks counts as its default.

        Raises:
            ValueError: the folder holds a run of another recipe; nothing is overwritten.
        """
        path = self.path / "recipe.yaml"
        if not path.exists() or not (self.is_finished or self.newest_checkpoint()):
            return
        try:
            earlier = load(path, type(recipe))
        except ValueError as error:
            raise ValueError(
                f"{self.path} holds a run of another kind or version ({error}); give another "
                "`run=FOLDER`, or delete that one"
            ) from error
        if earlier != recipe:
            difference = difflib.unified_diff(
                dump(earlier).split("\n"), dump(recipe).split("\n"), n=0, lineterm=""
            )
            changed = [line for line in difference if line[:1] in "+-"]
            raise ValueError(
                f"{self.path} holds a run of another recipe ({'; '.join(changed[2:8])}); "
                "give another `run=FOLDER`, or delete that one"
            )

    def start(self, recipe: Recipe | TowerRecipe) -> None:
        """Writes `recipe.yaml` and `environment.json` (versions, hardware, command line)."""
        if world().is_first:
            self.write_text("recipe.yaml", dump(recipe))
            self.write_text("environment.json", json.dumps(environment(), indent=2) + "\n")

    @property
    def processes(self) -> int | None:
        """How many processes trained last; None before the first did."""
        path = self.path / "environment.json"
        return int(json.loads(path.read_text())["processes"]) if path.exists() else None

    @property
    def is_finished(self) -> bool:
        """Whether `checkpoints/final` is there; it is renamed into place when whole."""
        return self.final.exists()

    def newest_checkpoint(self) -> str | None:
        """The newest checkpoint that was saved to its end (a kill may leave a torn one behind
        it).
        """
        whole = sorted(
            self.checkpoints.glob(f"checkpoint-*/{WHOLE}"), key=lambda mark: _step(mark.parent)
        )
        return str(whole[-1].parent) if whole else None

    def append_metrics(self, row: dict[str, float | int]) -> None:
        """Adds one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float | int]]:
        """Every whole line; a line torn by a kill is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def drop_metrics_after(self, checkpoint: str | None) -> None:
        """Forgets what a killed run logged beyond the checkpoint it resumes from (None:
        everything).
        """
        step = 0 if checkpoint is None else _step(Path(checkpoint))
        kept = [row for row in self.read_metrics() if row["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))


def environment() -> dict[str, object]:
    """What a reader needs to know to repeat a run on another machine."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "processor": _processor(),
        "processes": world().size,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": installed_packages(),
        "commit": _commit(),
    }


def installed_packages() -> dict[str, str]:
    """Versions of those that a run's numbers depend on."""
    return {name: installed for name in PACKAGES if (installed := _version(name))}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree that is running, when it is a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    shown = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None
