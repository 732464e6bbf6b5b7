"""A folder is written beside its place and renamed into it when whole, so that a kill leaves no
half of it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def refuse_existing(dest: Path) -> None:
    """A `ValueError` when something stands at `dest`."""
    if dest.exists():
        raise ValueError(
            f"{dest} exists already. Nothing is overwritten: give another folder, or "
            "delete that one"
        )


@contextmanager
def written_aside(dest: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `dest` at the end of the block; an error on the way
    leaves nothing.

    What a killed process left behind (`.NAME.unfinished`) is cleared away by the next that writes
    to the same place. Only one at a time may: it holds a lock on `.NAME.lock`, which the system
    lets go when its process ends, however it does.

    Raises:
        ValueError: something stands at `dest`, or another process is writing it.
    """
    aside = dest.parent / f".{dest.name}.unfinished"
    with _only_one(dest):
        refuse_existing(dest)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            aside.rename(dest)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _only_one(dest: Path) -> Iterator[None]:
    dest.parent.mkdir(parents=True, exist_ok=True)
    path = dest.parent / f".{dest.name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{dest} is being written by another process; wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        # while it is held: one who waits for it sees that, and takes the next
        path.unlink(missing_ok=True)
        lock.release()
