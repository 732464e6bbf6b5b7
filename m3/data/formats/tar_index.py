"""Samples of tar files by number (webdataset's layout): comes in tars, goes out the members of a
sample, as bytes.

Members `k.jpg`, `k.json` make up the sample `k`; the name up to the first dot is the key. Only the
headers are read at the start (a seek per member), and where members lie is kept, about 30 bytes
each. So any sample can be asked for at
once: order, resuming and dealing to workers and ranks are the mixture's business as for any other
file, and no `split_by_node` is needed. Nothing is extracted, and nothing is ever unpickled.
"""

import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3.data.formats.files import check_index, check_plain, find_files, parse_json

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
PICKLES = ("pkl", "pickle", "pth", "pt", "pyd")
_BLOCK = 512
_REST = 1 << 16
THREADS = 8


@dataclass(frozen=True)
class Member:
    """One file of a sample: what its name ends in behind the key (`jpg`, `0.jpg`), and where its
    bytes lie.
    """

    suffix: str
    offset: int
    size: int

    @property
    def kind(self) -> str:
        """The last extension."""
        return self.suffix.rpartition(".")[2]


@dataclass(frozen=True)
class Group:
    """The members of one sample, in the order of the tar."""

    tar: Path
    key: str
    members: tuple[Member, ...]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.tar}, sample {self.key!r}"

    def read(self, member: Member, most: int | None = None) -> bytes:
        """The member's content, or its first `most` bytes."""
        with self.tar.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size if most is None else min(member.size, most))

    def record(self) -> Any:
        """The parsed content of its one `.json`."""
        records = self.find("json")
        if len(records) != 1:
            raise ValueError(f"{self.where}: expected one .json member, got {len(records)}")
        return parse_json(self.read(records[0]), self.where)

    def find(self, *kinds: str) -> list[Member]:
        """The members with one of these extensions."""
        return [member for member in self.members if member.kind in kinds]

    def images(self) -> list[Member]:
        """The members that are images by their extension."""
        return self.find(*IMAGE_SUFFIXES)

    def named(self, name: str) -> Member:
        """The member that a record calls `name`: the whole name in the tar, its last part, or
        what follows the key.
        """
        last = self.key.rpartition("/")[2]
        for member in self.members:
            if name in (member.suffix, f"{last}.{member.suffix}", f"{self.key}.{member.suffix}"):
                return member
        names = ", ".join(f"{last}.{member.suffix}" for member in self.members)
        raise ValueError(
            f"{self.where}: names {name!r}, which is no member of the sample (members: {names})"
        )


class TarIndex:
    """The samples of one or more tars by number."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: a tar, a folder (its `*.tar`), or a pattern with `*`.

        Raises:
            ValueError: no such file, a tar that is compressed, damaged or cut short, a pickle
                inside, no samples.
        """
        self.files = find_files(path, (".tar",))
        with ThreadPoolExecutor(THREADS) as threads:  # much of it is waiting for the disk
            scanned = list(threads.map(_scan, self.files))
        suffixes = sorted({suffix for scan in scanned for suffix in scan.suffixes})
        code = {suffix: number for number, suffix in enumerate(suffixes)}
        self._suffixes = suffixes
        no_data = sum(scan.no_data for scan in scanned)
        self.unread: Mapping[str, int] = (
            {"hidden members and those without an extension": no_data} if no_data else {}
        )
        self._suffix_of = np.asarray(
            [code[suffix] for scan in scanned for suffix in scan.suffixes], dtype=np.int32
        )
        self._places = np.concatenate([scan.places for scan in scanned])
        counts = np.concatenate([scan.members_per_sample for scan in scanned])
        if not len(counts):
            raise ValueError(
                f"{path}: holds no samples; expected members such as 0001.jpg and 0001.json"
            )
        self._ends = np.cumsum(counts)
        self._file_of = np.repeat(
            np.arange(len(scanned), dtype=np.int32), [len(scan.keys) for scan in scanned]
        )
        keys = [key.encode() for scan in scanned for key in scan.keys]
        self._key_ends = np.cumsum([len(key) for key in keys])
        self._keys = b"".join(keys)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Group:
        check_index(index, len(self), str(self.files[0]))
        first = int(self._ends[index - 1]) if index else 0
        key_start = int(self._key_ends[index - 1]) if index else 0
        members = tuple(
            Member(
                self._suffixes[self._suffix_of[n]], int(self._places[n, 0]), int(self._places[n, 1])
            )
            for n in range(first, int(self._ends[index]))
        )
        key = self._keys[key_start : self._key_ends[index]].decode()
        return Group(self.files[self._file_of[index]], key, members)


@dataclass(frozen=True)
class _Scan:
    """What the headers of one tar say, sample by sample."""

    keys: list[str]
    members_per_sample: np.ndarray
    suffixes: list[str]
    places: np.ndarray
    """`[members, 2]` first byte and size."""
    no_data: int
    """Members that belong to no sample."""


def _scan(path: Path) -> _Scan:
    groups: dict[str, list[tuple[str, int, int]]] = {}
    no_data = 0
    for member in _headers(path):
        name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        folder, _, last = name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not stem or not dot or member.isdir():
            no_data += (
                not member.isdir()
            )  # webdataset's rule: hidden files, and files without an extension, are no data
            continue
        _check_member(path, name, member)
        suffix = suffix.lower()
        if suffix.rpartition(".")[2] in PICKLES:
            raise ValueError(
                f"{path}: member {name!r} is a pickle. Opening one can run any program it holds, "
                "so none is read. "
                "Write its content as JSON first, on a machine where you trust the file: see "
                "'Pickled data' in "
                "docs/data.md"
            )
        groups.setdefault(f"{folder}/{stem}" if folder else stem, []).append(
            (suffix, member.offset_data, member.size)
        )
    members = [member for group in groups.values() for member in group]
    return _Scan(
        list(groups),
        np.asarray([len(group) for group in groups.values()], dtype=np.int64),
        [suffix for suffix, _, _ in members],
        np.asarray([place for _, *place in members], dtype=np.int64).reshape(-1, 2),
        no_data,
    )


def _check_member(path: Path, name: str, member: tarfile.TarInfo) -> None:
    """A `ValueError` for what would be left out, or read wrong."""
    if member.islnk() or member.issym():
        raise ValueError(
            f"{path}: member {name!r} is a link to {member.linkname!r}, which would be left out; "
            "write the tar with "
            "`--dereference --hard-dereference`"
        )
    if not member.isreg() or member.issparse():
        kind = "is stored without its holes (a sparse file)" if member.issparse() else "is no file"
        raise ValueError(
            f"{path}: member {name!r} {kind}; write the tar of plain files, without `--sparse`"
        )


def _headers(path: Path) -> list[tarfile.TarInfo]:
    """Every member's header.

    Raises:
        ValueError: not a whole, uncompressed tar. tarfile takes a tar that ends early or in garbage
            for a shorter one; a whole one ends in blocks of zeros and has nothing behind them, so
            that is looked at here.
    """
    check_plain(path)
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                found = list(tar)
                file.seek(tar.offset)
        except tarfile.TarError as error:
            raise ValueError(
                f"{path}: not a whole tar file ({error}). Copy or download it again"
            ) from error
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(
                f"{path}: the tar is cut short or damaged at byte {tar.offset:,}, behind "
                f"{len(found)} members. Copy or "
                "download it again"
            )
        while block := file.read(_REST):
            if block.strip(b"\0"):
                at = file.tell() - len(block.lstrip(b"\0"))
                raise ValueError(
                    f"{path}: has more behind its end, at byte {at:,}: several tars in one file? "
                    "Name them one by one, or "
                    "copy or download it again"
                )
    return found
