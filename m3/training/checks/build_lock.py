"""Locks that a killed process left while it compiled one of DeepSpeed's operators: torch would wait
for them for ever.

in: the folder in which torch compiles extensions (torch/utils/cpp_extension.py); out: nothing, a
warning or an error. There is one file `lock` per extension, which its process holds open while it
compiles (torch/utils/file_baton.py) and removes behind it. It names no process. So one that no
process of this machine holds belongs to another machine of a shared home, or to nobody.
"""

import logging
import os
import sys
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

logger = logging.getLogger(__name__)

LONGEST_BUILD = 1800.0
"""Seconds.

No operator takes longer to compile; an older lock that nobody here holds is left over.
"""


def build_locks() -> list[Path]:
    """The locks there are, of this Python's extensions."""
    extensions_folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    if extensions_folder is not None:
        return sorted(Path(extensions_folder).glob("*/lock"))
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    return sorted(Path(get_default_build_root()).glob(f"{version}*/*/lock"))


def check_build_locks() -> None:
    """Looks at every lock; one that may be another machine's is a warning, since waiting for that
    one is right.

    Raises:
        ValueError: a lock that is left over.
    """
    for lock in build_locks():
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue  # just released
        if _is_held(lock):
            continue
        lock_finding = (
            f"{lock} says that {lock.parent.name} is being compiled, for {age:.0f} s, and no "
            "process of this machine does so"
        )
        if age > LONGEST_BUILD:
            raise ValueError(
                f"{lock_finding}; DeepSpeed would wait for it for ever. A killed process "
                "left it: delete it"
            )
        logger.warning(
            "%s; DeepSpeed waits for it. Unless another machine compiles there, delete it",
            lock_finding,
        )


def _is_held(lock: Path) -> bool:
    """Tell whether a process of this machine has the file open; False where the system does not say
    (no /proc).
    """
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == lock.resolve():
                return True
        except OSError:
            continue  # another user's process, or one that has ended
    return False
