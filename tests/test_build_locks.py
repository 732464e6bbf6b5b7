"""Locks of torch's extension builds: one in use is left alone, one that is left over is named."""

import os
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from m3.doctor import LONGEST_BUILD, examine, gather, unheld_build_locks


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch puts the lock of an extension."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return Path(cpp_extension._get_build_directory("some_op", verbose=False)) / "lock"


def test_there_is_none(lock: Path) -> None:
    assert unheld_build_locks() == {}


def test_it_lies_where_torch_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = Path(cpp_extension._get_build_directory("some_op", verbose=False)) / "lock"
    assert lock.is_relative_to(tmp_path)
    lock.touch()
    assert list(unheld_build_locks()) == [lock]


def test_one_that_is_held_is_left_alone(lock: Path) -> None:
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    assert unheld_build_locks() == {}
    baton.release()


@pytest.mark.parametrize(
    ("age", "state", "advice"),
    [
        (0.0, "warning", "Unless another machine compiles there, delete it"),
        (LONGEST_BUILD + 60, "problem", "would wait for it for ever. A killed process left it"),
    ],
)
def test_one_of_a_killed_process_is_named(lock: Path, age: float, state: str, advice: str) -> None:
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    check = examine(gather())[-1]
    assert (check.name, check.state) == ("build lock", state) and advice in check.advice
    assert f"{lock} says that some_op is being compiled, for " in check.finding
