"""Index of tar files in webdataset's layout: the members of any sample by number, as bytes.

Members `k.jpg`, `k.json` make up the sample `k`; the name up to the first dot is the key. Only the
headers are read at the start (a seek per member), and where members lie is kept, about 30 bytes
each. So any sample can be asked for at once: order, resuming and dealing to workers and ranks are
the mixture's business as for any other file, and no `split_by_node` is needed. Nothing is
extracted, and nothing is ever unpickled.
"""

import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3.data.formats.content_keys import IMAGE_SUFFIXES
from m3.data.formats.readers.files import PICKLE_SUFFIXES, check_uncompressed, parse_json

THREADS = 8
_BLOCK_SIZE = 512
_READ_SIZE = 1 << 16


@dataclass(frozen=True)
class Member:
    """One file of a sample: its name behind the key (`jpg`, `0.jpg`), and its place in the tar."""

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
    def location(self) -> str:
        """Tar and key, for messages."""
        return f"{self.tar}, sample {self.key!r}"

    @property
    def member_list(self) -> str:
        """Names of the members, for messages."""
        return "members: " + ", ".join(f".{member.suffix}" for member in self.members)

    def read_bytes(self, member: Member, max_bytes: int | None = None) -> bytes:
        """The member's content, or its first `max_bytes`."""
        with self.tar.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size if max_bytes is None else min(member.size, max_bytes))

    def read_json(self) -> Any:
        """The parsed content of its one `.json`."""
        members = self.members_of_kind("json")
        if len(members) != 1:
            raise ValueError(f"{self.location}: expected one .json member, got {len(members)}")
        return parse_json(self.read_bytes(members[0]), self.location)

    def members_of_kind(self, *kinds: str) -> list[Member]:
        """The members with one of these extensions."""
        return [member for member in self.members if member.kind in kinds]

    def image_members(self) -> list[Member]:
        """The members that are images by their extension."""
        return self.members_of_kind(*IMAGE_SUFFIXES)

    def find_member(self, name: str) -> Member:
        """The member that a record calls `name`: the whole name in the tar, its last part, or
        what follows the key.
        """
        last_name = self.key.rpartition("/")[2]
        for member in self.members:
            full_names = (f"{last_name}.{member.suffix}", f"{self.key}.{member.suffix}")
            if name in (member.suffix, *full_names):
                return member
        known_names = ", ".join(f"{last_name}.{member.suffix}" for member in self.members)
        raise ValueError(
            f"{self.location}: names {name!r}, which is no member of the sample (members: "
            f"{known_names})"
        )


class TarIndex:
    """The samples of one or more tars by number."""

    def __init__(self, files: list[Path]) -> None:
        """
        Raises:
            ValueError: a tar that is compressed, damaged or cut short, a pickle inside.
        """
        self.files = files
        with ThreadPoolExecutor(THREADS) as threads:  # much of it is waiting for the disk
            scans = list(threads.map(_scan_tar, files))
        self._suffixes = sorted({suffix for scan in scans for suffix in scan.suffixes})
        suffix_numbers = {suffix: number for number, suffix in enumerate(self._suffixes)}
        num_hidden = sum(scan.num_hidden for scan in scans)
        self.unread: Mapping[str, int] = (
            {"hidden members and those without an extension": num_hidden} if num_hidden else {}
        )
        self._suffix_of = np.asarray(
            [suffix_numbers[suffix] for scan in scans for suffix in scan.suffixes], dtype=np.int32
        )
        self._extents = np.concatenate([scan.extents for scan in scans])
        self._ends = np.cumsum(np.concatenate([scan.members_per_sample for scan in scans]))
        self._file_of = np.repeat(
            np.arange(len(scans), dtype=np.int32), [len(scan.keys) for scan in scans]
        )
        # one buffer instead of as many Python strings as there are samples
        keys = [key.encode() for scan in scans for key in scan.keys]
        self._key_ends = np.cumsum([len(key) for key in keys])
        self._keys = b"".join(keys)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Group:
        first_member = int(self._ends[index - 1]) if index else 0
        key_start = int(self._key_ends[index - 1]) if index else 0
        members = tuple(
            Member(
                self._suffixes[self._suffix_of[number]],
                int(self._extents[number, 0]),
                int(self._extents[number, 1]),
            )
            for number in range(first_member, int(self._ends[index]))
        )
        key = self._keys[key_start : self._key_ends[index]].decode()
        return Group(self.files[self._file_of[index]], key, members)


@dataclass(frozen=True)
class _TarScan:
    """Headers of one tar, sample by sample."""

    keys: list[str]
    members_per_sample: np.ndarray
    suffixes: list[str]
    extents: np.ndarray
    """`[members, 2]` first byte and size."""
    num_hidden: int
    """Members that belong to no sample."""


def _scan_tar(path: Path) -> _TarScan:
    groups: dict[str, list[tuple[str, int, int]]] = {}
    num_hidden = 0
    for header in _read_headers(path):
        name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        folder, _, file_name = name.rpartition("/")
        stem, dot, suffix = file_name.partition(".")
        if header.isdir():
            continue
        if not stem or not dot:
            # webdataset's rule: hidden files, and files without an extension, are no data
            num_hidden += 1
            continue
        _check_header(path, name, header)
        key = f"{folder}/{stem}" if folder else stem
        groups.setdefault(key, []).append((suffix.lower(), header.offset_data, header.size))
    members = [member for group in groups.values() for member in group]
    return _TarScan(
        list(groups),
        np.asarray([len(group) for group in groups.values()], dtype=np.int64),
        [suffix for suffix, _, _ in members],
        np.asarray([extent for _, *extent in members], dtype=np.int64).reshape(-1, 2),
        num_hidden,
    )


def _check_header(path: Path, name: str, header: tarfile.TarInfo) -> None:
    """Refuse members that would be left out, read wrong or unpickled."""
    if header.islnk() or header.issym():
        raise ValueError(
            f"{path}: member {name!r} is a link to {header.linkname!r}, which would be left out; "
            "write the tar with `--dereference --hard-dereference`"
        )
    if not header.isreg() or header.issparse():
        kind = "is stored without its holes (a sparse file)" if header.issparse() else "is no file"
        raise ValueError(
            f"{path}: member {name!r} {kind}; write the tar of plain files, without `--sparse`"
        )
    if name.rpartition(".")[2].lower() in PICKLE_SUFFIXES:
        raise ValueError(
            f"{path}: member {name!r} is a pickle. Opening one can run any program it holds, so "
            "none is read. Write its content as JSON first, on a machine where you trust the file: "
            "see 'Pickled data' in docs/data.md"
        )


def _read_headers(path: Path) -> list[tarfile.TarInfo]:
    """Every member's header.

    Raises:
        ValueError: not a whole, uncompressed tar.
    """
    check_uncompressed(path)
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                headers = list(tar)
                file.seek(tar.offset)
        except tarfile.TarError as error:
            raise ValueError(
                f"{path}: not a whole tar file ({error}). Copy or download it again"
            ) from error
        # tarfile takes a tar that ends early or in garbage for a shorter one; a whole one ends in
        # blocks of zeros and has nothing behind them
        if file.read(_BLOCK_SIZE) != bytes(_BLOCK_SIZE):
            raise ValueError(
                f"{path}: the tar is cut short or damaged at byte {tar.offset:,}, behind "
                f"{len(headers)} members. Copy or download it again"
            )
        while block := file.read(_READ_SIZE):
            if block.strip(b"\0"):
                position = file.tell() - len(block.lstrip(b"\0"))
                raise ValueError(
                    f"{path}: has more behind its end, at byte {position:,}: several tars in one "
                    "file? Name them one by one, or copy or download it again"
                )
    return headers
