"""Locks of torch's extension builds: a living one is waited for, a left-over one is named before
anything hangs.
"""

import logging
import os
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from m3.training.checks.build_lock import LONGEST_BUILD, build_locks, check_build_locks
from m3.training.loop.distributed import start_deepspeed

ZERO3 = Path(__file__).resolve().parents[2] / "scripts" / "deepspeed" / "zero3.json"


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch puts the lock of an extension."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return Path(cpp_extension._get_build_directory("some_op", verbose=False)) / "lock"


def test_there_is_none(lock: Path) -> None:
    assert build_locks() == []
    check_build_locks()


def test_it_lies_where_torch_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = Path(cpp_extension._get_build_directory("some_op", verbose=False)) / "lock"
    assert lock.is_relative_to(tmp_path)
    lock.touch()
    assert build_locks() == [lock]


def test_one_that_is_held_is_left_alone(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    os.utime(lock, (0, 0))
    check_build_locks()
    baton.release()
    assert not caplog.records


def test_one_of_a_killed_process_is_named(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock.touch()
    with caplog.at_level(logging.WARNING, "m3"):
        check_build_locks()
    (record,) = caplog.records
    assert (
        f"{lock} says that some_op is being compiled, for 0 s, and no process of this machine"
        in record.message
    )
    assert "Unless another machine compiles there, delete it" in record.message


def test_an_old_one_stops_the_run_before_it_would_hang(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.touch()
    os.utime(lock, (time.time() - LONGEST_BUILD - 60,) * 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(
        ValueError,
        match=r"/some_op/lock says .* for 18\d\d s, .* would wait for it for ever.*: "
        r"delete it",
    ):
        start_deepspeed(str(ZERO3))
