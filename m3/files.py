"""Files and folders that stand under their name whole or not at all, and locks between processes.

Both are written beside their place and renamed into it, so that a kill leaves no half of them.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` at the end of the block; an error on the way leaves
    what was there. Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_file = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary_file
        temporary_file.replace(path)
    finally:
        temporary_file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8 and with the line ends that `text` has."""
    with atomic_file(path) as temporary_file:
        temporary_file.write_text(text, encoding="utf-8", newline="")


def check_model_name(name: str | Path) -> None:
    """A `ValueError` for what is no file or folder here and cannot be an id of the hub either, so
    that nobody waits for the hub to say so.
    """
    if not Path(name).exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)) is None:
        raise ValueError(
            f"{name}: no such folder (looked from {Path.cwd()}), and no id of the hub, which would "
            "be owner/name"
        )


def refuse_existing(dest: Path) -> None:
    """A `ValueError` when something stands at `dest`."""
    if dest.exists():
        raise ValueError(
            f"{dest} exists already. Nothing is overwritten: give another folder, or "
            "delete that one"
        )


@contextmanager
def atomic_folder(dest: Path, is_resumed: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `dest` at the end of the block; an error on the way
    leaves nothing, unless the folder `is_resumed`.

    What a killed process left behind (`.NAME.unfinished`) is cleared away by the next that writes
    to the same place, or completed where the folder `is_resumed`. Only one process at a time may:
    it holds the lock `.NAME.lock`.

    Raises:
        ValueError: something stands at `dest`, or another process is writing it.
    """
    unfinished_folder = dest.parent / f".{dest.name}.unfinished"
    refusal = f"{dest} is being written by another process; wait for it, or give another folder"
    with lock(dest.parent / f".{dest.name}.lock", refusal):
        refuse_existing(dest)
        if not is_resumed:
            shutil.rmtree(unfinished_folder, ignore_errors=True)
        unfinished_folder.mkdir(parents=True, exist_ok=is_resumed)
        try:
            yield unfinished_folder
            unfinished_folder.rename(dest)
        finally:
            if not is_resumed:
                shutil.rmtree(unfinished_folder, ignore_errors=True)


@contextmanager
def lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`; the system releases it when its process ends, however it does.

    Raises:
        ValueError: another process holds it; `refusal` is what the error says.
    """
    import fcntl  # not on Windows, where the rest of the package can be imported

    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as open_files:
        while True:
            lock_file = open_files.enter_context(path.open("a"))
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(refusal) from None
            if os.fstat(lock_file.fileno()).st_nlink:
                break  # else its holder has removed it meanwhile, and the next may be another's
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
