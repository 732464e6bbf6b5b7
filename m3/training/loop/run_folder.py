"""The folder of a run: `recipe.yaml`, `environment.json`, `metrics.jsonl`, `checkpoints/`.

Runs explain themselves.

No file is ever half-written; the metrics are appended a line at a time, and a resumed run first
drops the lines that lie beyond its checkpoint.
"""

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from m3.config import dump, load
from m3.files import write_text
from m3.hardware import environment
from m3.training.loop.distributed import world
from m3.training.recipe.recipe import Recipe, TowerRecipe
from m3.training.recipe.resolution_recipe import ResolutionRecipe
from m3.training.recipe.router_recipe import BudgetRouterRecipe

AnyRecipe = Recipe | TowerRecipe | BudgetRouterRecipe | ResolutionRecipe
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

    def check(self, recipe: AnyRecipe) -> None:
        """Looks whether the folder is free for `recipe`.

        A key that the stored recipe lacks counts as its default.

        Raises:
            ValueError: the folder holds a run of another recipe; nothing is overwritten.
        """
        recipe_file = self.path / "recipe.yaml"
        if not recipe_file.exists() or not (self.is_finished or self.newest_checkpoint()):
            return
        try:
            earlier = load(recipe_file, type(recipe))
        except ValueError as error:
            raise ValueError(
                f"{self.path} holds a run of another kind or version ({error}); give another "
                "`run=FOLDER`, or delete that one"
            ) from error
        if earlier != recipe:
            difference = difflib.unified_diff(
                dump(earlier).split("\n"), dump(recipe).split("\n"), n=0, lineterm=""
            )
            changed = [
                difference_line for difference_line in difference if difference_line[:1] in "+-"
            ]
            raise ValueError(
                f"{self.path} holds a run of another recipe ({'; '.join(changed[2:8])}); "
                "give another `run=FOLDER`, or delete that one"
            )

    def start(self, recipe: AnyRecipe) -> None:
        """Writes `recipe.yaml` and `environment.json` (versions, hardware, command line)."""
        if world().is_first:
            write_text(self.path / "recipe.yaml", dump(recipe))
            run_environment = {**environment(sys.argv), "processes": world().size}
            write_text(self.path / "environment.json", json.dumps(run_environment, indent=2) + "\n")

    @property
    def processes(self) -> int | None:
        """Number of processes that trained last; None before the first did."""
        environment_file = self.path / "environment.json"
        return (
            int(json.loads(environment_file.read_text())["processes"])
            if environment_file.exists()
            else None
        )

    @property
    def is_finished(self) -> bool:
        """Tell whether `checkpoints/final` is there; it is renamed into place when whole."""
        return self.final.exists()

    def newest_checkpoint(self) -> str | None:
        """The newest checkpoint that was saved to its end (a kill may leave a torn one behind
        it).
        """
        whole_checkpoints = sorted(
            self.checkpoints.glob(f"checkpoint-*/{WHOLE}"), key=lambda mark: _step(mark.parent)
        )
        return str(whole_checkpoints[-1].parent) if whole_checkpoints else None

    def append_metrics(self, row: Mapping[str, float | int | str]) -> None:
        """Adds one line to `metrics.jsonl`."""
        with self.metrics.open("a") as metrics_file:
            metrics_file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float | int]]:
        """Every whole line; a line torn by a kill is left out."""
        if not self.metrics.exists():
            return []
        metric_lines = self.metrics.read_text().split("\n")
        return [json.loads(metric_line) for metric_line in metric_lines[:-1] if metric_line]

    def drop_metrics_after(self, checkpoint: str | None) -> None:
        """Forgets what a killed run logged beyond the checkpoint it resumes from (None:
        everything).
        """
        last_step = 0 if checkpoint is None else _step(Path(checkpoint))
        kept_rows = [
            metric_row for metric_row in self.read_metrics() if metric_row["step"] <= last_step
        ]
        write_text(self.metrics, "".join(json.dumps(metric_row) + "\n" for metric_row in kept_rows))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
