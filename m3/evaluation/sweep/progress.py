"""Progress messages of a sweep: each cell as it is scored, the time left, the disk space left."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.results.run_folder import CellRow
from m3.text_table import duration

logger = logging.getLogger(__name__)

BYTES_PER_ANSWER = 3_000
"""Upper estimate of what an answer takes in the store, its score and its part of the harness's
result included.
"""
SPARE_BYTES = 200_000_000


def check_disk(run: Path, answers: int) -> None:
    """Refuses to start what would fill the disk.

    Raises:
        ValueError: less is free than `answers` answers and a reserve need.
    """
    free, needed = shutil.disk_usage(run).free, answers * BYTES_PER_ANSWER + SPARE_BYTES
    if free < needed:
        raise ValueError(
            f"{run}: {gigabytes(free)} free on this disk, but {answers} answers may need "
            f"{gigabytes(needed)}. Free some, "
            "choose another --out, or evaluate less (--limit, --tasks, --scales, --methods)"
        )


class Progress:
    """Cells done of cells in all; the time left is what the rest takes at the pace so far."""

    def __init__(self, cells: int, run: Path) -> None:
        self.cells = cells
        self.run = run
        self.done = 0
        self._started = time.monotonic()

    def report(self, rows: Sequence[CellRow], name: str, task: str, scale: int | str) -> None:
        """One line for the cell that was just scored."""
        self.done += 1
        primary = next((cell_row for cell_row in rows if cell_row.is_primary), None)
        if primary is None:
            status_text = "answered; a server scores it (m3 submit)" if not rows else "scored"
        elif primary.status == "failed":
            status_text = f"FAILED: {primary.error}"
        else:
            status_text = f"{primary.metric} {primary.value:.4g}" + (
                "" if primary.stderr is None else f" ± {primary.stderr:.2g}"
            )
        elapsed = time.monotonic() - self._started
        seconds_left = elapsed / self.done * (self.cells - self.done)
        free = gigabytes(shutil.disk_usage(self.run).free)
        logger.info(
            "[%d/%d] %s, %s at %s tokens: %s; %s so far, about %s left, %s free",
            *(
                self.done,
                self.cells,
                name,
                task,
                scale,
                status_text,
                duration(elapsed),
                duration(seconds_left),
                free,
            ),
        )


def gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
