"""Which files a path means, and records of JSON lines by number.

Comes in: a path. Goes out: files, or parsed lines.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 16 * 2**20
"""Bytes read at a time while looking for line ends."""


COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin."""


def check_plain(path: Path) -> None:
    """A `ValueError` for a compressed file: no record of one can be reached at once."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{path}: is compressed ({name}), so no sample can be reached at "
                "once. Decompress it"
            )


def present(files: Iterable[Path]) -> list[Path]:
    """Those that are files, by name; a `ValueError` for a link to nothing, which would be left
    out without a word.
    """
    found: list[Path] = []
    for file in sorted(files):
        if file.is_file():
            found.append(file)
        elif file.is_symlink() and not file.exists():
            raise ValueError(
                f"{file}: is a link to a file that is not there ({file.readlink()}). Mount it, or "
                "remove the link"
            )
    return found


def find_files(path: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The file `path`; or the files with one of `suffixes` in the folder `path`; or those that
    match its `*`, by name.

    Raises:
        ValueError: there is none, or a link among them leads nowhere.
    """
    text = str(path)
    given = Path(path)
    if given.is_file():
        return [given]
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if given.is_dir():
        found = present(file for suffix in suffixes for file in given.glob(f"*{suffix}"))
        if not found:
            raise ValueError(f"{path}: holds no {wanted} (looked from {Path.cwd()})")
        return found
    if "*" in text:
        root = Path(given.anchor) if given.is_absolute() else Path()
        found = present(root.glob(str(given.relative_to(given.anchor))))
        if not found:
            raise ValueError(f"{path}: matches no file (looked from {Path.cwd()})")
        return found
    hint = (
        ". Braces are not expanded; write shards-*.tar, or one source per range"
        if "{" in text
        else ""
    )
    raise ValueError(f"{path}: no such data file (looked from {Path.cwd()}){hint}")


def json_lines_files(path: str | Path) -> list[Path]:
    """The file `path`, or the files of JSON lines that it means."""
    return find_files(path, (".jsonl",))


def check_index(index: int, length: int, name: str) -> None:
    """An `IndexError` that says how many records there are."""
    if not 0 <= index < length:
        raise IndexError(f"record {index} of {name}, which has {length}")


def parse_json(text: str | bytes, where: str) -> Any:
    """Parsed JSON, or a `ValueError` that begins with `where`."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error})") from error
    # JSONDecodeError, and what Python says of a number of thousands of digits
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON: nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; a `ValueError` for one with a key twice, of which JSON's readers drop the
    first without a word.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        start = str(values)[:80]  # says which, in a file that is one line
        raise ValueError(f"an object has the key {twice!r} twice: {start}")
    return values


class JsonLines:
    """The records of one or more `.jsonl` files by number.

    Memory holds where lines begin (8 bytes each), no text.

    Blank lines do not count. A file is opened for every record and closed again, so that workers
    and threads share nothing; the line is parsed only then, so one bad line spoils one record.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: a file, a folder (its `*.jsonl`) or a pattern with `*`.

        Raises:
            ValueError: no such file, a compressed one, or no line in it.
        """
        self.files = json_lines_files(path)
        for file in self.files:
            check_plain(file)
        starts, ends, numbers = zip(*(_lines(file) for file in self.files), strict=True)
        self._file_of = np.repeat(
            np.arange(len(self.files), dtype=np.int32), [len(found) for found in starts]
        )
        self._starts, self._ends, self._numbers = map(np.concatenate, (starts, ends, numbers))
        if not len(self._starts):
            raise ValueError(f"{path}: holds no records")

    def __len__(self) -> int:
        return len(self._starts)

    def file(self, index: int) -> Path:
        """Of record `index`."""
        return self.files[self._file_of[index]]

    def where(self, index: int) -> str:
        """File and line of record `index` (lines from 1), for messages."""
        return f"{self.file(index)}, line {self._numbers[index]}"

    def __getitem__(self, index: int) -> Any:
        check_index(index, len(self), str(self.files[0]))
        start, end = int(self._starts[index]), int(self._ends[index])
        with self.file(index).open("rb") as file:
            file.seek(start)
            line = file.read(end - start)
        return parse_json(line.removeprefix(codecs.BOM_UTF8), self.where(index))


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end (bytes) and number (from 1) of every line with something on it; int64 each."""
    breaks: list[np.ndarray] = []
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            breaks.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + size)
            size += len(block)
        ends = np.concatenate([*breaks, np.asarray([size])]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        filled = np.ones(len(starts), dtype=bool)
        for line in np.flatnonzero(ends - starts < 64):  # only a short line can be blank
            file.seek(starts[line])
            filled[line] = bool(file.read(int(ends[line] - starts[line])).strip())
    return starts[filled], ends[filled], np.flatnonzero(filled) + 1
