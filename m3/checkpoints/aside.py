"""A folder is written beside its place and renamed into it when whole, so that a kill leaves no half of it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(dest: Path) -> None:
    """A `ValueError` when something stands at `dest`."""
    if dest.exists():
        raise ValueError(f"{dest} exists already. Nothing is overwritten: give another folder, or delete that one")


@contextmanager
def written_aside(dest: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `dest` at the end of the block; an error on the way leaves nothing.

    What a killed process left behind (`.NAME.unfinished`) is cleared away by the next that writes to the same place.
    """
    refuse_existing(dest)
    aside = dest.parent / f".{dest.name}.unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.rename(dest)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
