"""Records of JSON: one object per line, or a list in one file."""

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np

from m3.config import describe
from m3.data.formats.readers.files import (
    PICKLE_SUFFIXES,
    check_uncompressed,
    find_files,
    parse_json,
)
from m3.data.formats.record import Record, RecordReader
from m3.data.formats.settings import SourceSettings

_BLOCK_SIZE = 16 * 2**20
"""Bytes read at a time while looking for line ends."""


class JsonLines(RecordReader[Record]):
    """Records of one or more `.jsonl` files.

    Memory holds where lines begin (8 bytes each), no text. Blank lines do not count. A file is
    opened for every record and closed again, so that workers and threads share nothing; the line is
    parsed only then, so one bad line spoils one record.
    """

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        return find_files(path, ".jsonl")

    def __init__(self, settings: SourceSettings) -> None:
        self.files = self.find_files(settings.path)
        for file in self.files:
            check_uncompressed(file)
        starts, ends, line_numbers = zip(*(_find_lines(file) for file in self.files), strict=True)
        self._file_of = np.repeat(
            np.arange(len(self.files), dtype=np.int32), [len(file_starts) for file_starts in starts]
        )
        self._starts, self._ends, self._line_numbers = map(
            np.concatenate, (starts, ends, line_numbers)
        )
        if not len(self._starts):
            raise ValueError(f"{settings.path}: holds no records")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        file_path = self.files[self._file_of[index]]
        start, end = int(self._starts[index]), int(self._ends[index])
        with file_path.open("rb") as file:
            file.seek(start)
            line = file.read(end - start)
        location = f"{file_path}, line {self._line_numbers[index]}"
        content = parse_json(line.removeprefix(codecs.BOM_UTF8), location)
        return Record(content, location, str(index), file_path.parent)


class TrainLines(JsonLines):
    """Lines of a `.jsonl` file; a folder means its `train.jsonl`, as Aria's data has it."""

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        file_path = Path(path)
        if file_path.is_dir():
            file_path /= "train.jsonl"
            if not file_path.is_file():
                raise ValueError(f"{path}: holds no train.jsonl (looked from {Path.cwd()})")
        return find_files(file_path, ".jsonl")


class InterleavedLines(JsonLines):
    """Lines of `.jsonl` files; pickles of the same records, as VILA writes them, are refused."""

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        root = Path(path)
        for file in sorted(root.glob("*")) if root.is_dir() else [root]:
            if file.suffix.lstrip(".").lower() in PICKLE_SUFFIXES and file.exists():
                raise ValueError(
                    f"{file}: is a pickle. Opening one can run any program it holds, so none is "
                    "read. Write its content as JSON lines first, on a machine where you trust the "
                    "file: see 'Pickled data' in docs/data.md"
                )
        return find_files(path, ".jsonl")


class JsonFile(RecordReader[Record]):
    """Records of one `.json` list, or of `.jsonl` files.

    Records of a list are kept as encoded text in one buffer, not as Python objects: a tenth of the
    memory, and dataloader workers share it instead of copying it when they touch it.
    """

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        return find_files(path, ".jsonl")

    def __init__(self, settings: SourceSettings) -> None:
        self.path = Path(settings.path)
        self._lines = JsonLines(settings) if self.path.suffix == ".jsonl" else None
        records = [] if self._lines is not None else _read_list(self.path)
        texts = [json.dumps(record).encode() for record in records]
        self._ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        self._buffer = b"".join(texts)

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._lines is None else len(self._lines)

    def __getitem__(self, index: int) -> Record:
        if self._lines is not None:
            return self._lines[index]
        content = json.loads(self._buffer[self._ends[index] : self._ends[index + 1]])
        return Record(content, f"{self.path}, record {index}", str(index), self.path.parent)


def _read_list(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such data file (looked from {Path.cwd()})")
    check_uncompressed(path)
    records = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), str(path))
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: expected a JSON list of records, got {describe(records)}. One object "
            "per line? Name it .jsonl"
        )
    return records


def _find_lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, end (bytes) and number (from 1) of every line with something on it; int64 each."""
    line_breaks: list[np.ndarray] = []
    file_size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_SIZE):
            in_block = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
            line_breaks.append(in_block + file_size)
            file_size += len(block)
        ends = np.concatenate([*line_breaks, np.asarray([file_size])]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        is_filled = np.ones(len(starts), dtype=bool)
        for line in np.flatnonzero(ends - starts < 64):  # only a short line can be blank
            file.seek(starts[line])
            is_filled[line] = bool(file.read(int(ends[line] - starts[line])).strip())
    return starts[is_filled], ends[is_filled], np.flatnonzero(is_filled) + 1
