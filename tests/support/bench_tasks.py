"""Tasks for processes that a test spawns; they must be importable by name there."""

import time
from collections.abc import Callable


def allocate(mark: Callable[[], None], mebibytes: int) -> None:
    """Holds so much memory for a moment."""
    mark()
    held = bytearray(mebibytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(0.05)


def fail(mark: Callable[[], None]) -> None:
    raise SystemExit(3)
