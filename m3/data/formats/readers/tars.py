"""Records of tars: the members of a sample, beside the JSON that names them.

The filters of captioned images belong here too, as what they leave out has no number: they are
those that mllm-npu's caption data is filtered by, decided once, at the start.
"""

import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m3.data.formats.content_keys import VIDEO_SUFFIXES, is_content_file, is_present
from m3.data.formats.fields import UnusedKeys, shorten
from m3.data.formats.readers.files import find_files, parse_json
from m3.data.formats.readers.tar_index import THREADS, Group, Member, TarIndex
from m3.data.formats.record import Record, RecordReader
from m3.data.formats.settings import Filters, SourceSettings
from m3.processing.images import image_size

SCORE_KEYS = ("similarity", "score")
"""Keys of a record that say how well caption and image fit; the first that is there counts."""
HEAD_SIZE = 1 << 16
"""Bytes of an image that are read for its size; all of them where the header is longer."""


@dataclass(frozen=True)
class TarRecord(Record):
    """A record whose media are members of its sample; one that nothing names is refused."""

    group: Group = field(kw_only=True)
    used_members: list[Member] = field(default_factory=list, kw_only=True)

    def resolve(self, path: str, image_folder: str | None) -> bytes:
        """Content of the member that the record calls `path`."""
        return self.read_member(self.group.find_member(path))

    def read_member(self, member: Member) -> bytes:
        """Content of a member, which counts as used then."""
        self.used_members.append(member)
        return self.group.read_bytes(member)

    def close(self, unused: UnusedKeys) -> None:
        """Refuse images, sounds, videos and texts that were not read, and note other members."""
        for member in self.group.members:
            is_ignored = unused.ignores(member.suffix, member.kind)
            if member in self.used_members and not is_ignored:
                continue
            if not is_ignored and is_content_file(member.suffix):
                raise ValueError(
                    f"{self.location}: its member .{member.suffix} is not read, as nothing in the "
                    "sample names it. Name it in the record, take it out of the tar, or list "
                    f"{member.suffix!r} under the source's `ignore`"
                )
            unused.keys.append(f".{member.suffix}")


class TarReader(RecordReader[TarRecord]):
    """Samples of a tar, a folder of them, or a pattern with `*`."""

    is_text = False

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        return find_files(path, ".tar")

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._index = TarIndex(self.find_files(settings.path))
        self.unread = self._index.unread
        if not len(self._index):
            raise ValueError(
                f"{settings.path}: holds no samples; expected members such as 0001.jpg and "
                "0001.json"
            )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> TarRecord:
        group = self._index[index]
        return TarRecord(None, group.location, group.key, group=group)


class JsonTar(TarReader):
    """Samples whose record is their one `.json`."""

    def __getitem__(self, index: int) -> TarRecord:
        group = self._index[index]
        used_members = group.members_of_kind("json")
        return TarRecord(
            self.read_content(group),
            group.location,
            group.key,
            group=group,
            used_members=used_members,
        )

    def read_content(self, group: Group) -> Any:
        """The decoded record."""
        return group.read_json()


class ConversationTar(JsonTar):
    """LLaVA's conversations: `k.json` beside `k.jpg`, or `k.0.jpg`, `k.1.jpg` ..., or `k.mp4`.

    A record that names no media itself shows all images (or videos) of its sample, in the order of
    the tar.
    """

    def read_content(self, group: Group) -> Any:
        content = super().read_content(group)
        if not isinstance(content, dict):
            raise ValueError(
                f"{group.location}: expected an object with conversations, got {shorten(content)}"
            )
        if any(is_present(content.get(key)) for key in ("image", "images", "video", "videos")):
            return content
        media = {
            "image": self._suffixes(group.image_members()),
            "video": self._suffixes(group.members_of_kind(*VIDEO_SUFFIXES)),
        }
        return content | {key: suffixes for key, suffixes in media.items() if suffixes}

    def _suffixes(self, members: Iterable[Member]) -> list[str]:
        ignored_names = frozenset(self._settings.ignore or ())
        return [
            member.suffix
            for member in members
            if ignored_names.isdisjoint((member.suffix, member.kind))
        ]


class FilteredTar(TarReader):
    """Samples that pass the source's filters.

    What is needed for that (the record, the head of the image) is read at the start; a sample for
    which it cannot be read stays, and is refused when it is asked for.
    """

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        self._numbers = np.arange(len(self._index))
        if settings.filters is None:
            return
        with ThreadPoolExecutor(THREADS) as threads:  # much of it is waiting for the disk
            failed_filters = list(threads.map(self._failed_filter, range(len(self._index))))
        self.left_out = Counter(name for name in failed_filters if name is not None)
        self._numbers = np.flatnonzero([name is None for name in failed_filters])
        if not len(self._numbers):
            counts = ", ".join(f"{count} {name}" for name, count in self.left_out.items())
            raise ValueError(
                f"{settings.path}: its filters leave none of {len(failed_filters)} samples "
                f"({counts}); lower them"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> TarRecord:
        record = super().__getitem__(int(self._numbers[index]))
        if self._settings.filters is not None:
            find_failed_filter(record.group, self._settings.filters)  # may not be judged: raises
        return record

    def _failed_filter(self, number: int) -> str | None:
        assert self._settings.filters is not None  # only then is it called
        try:
            return find_failed_filter(self._index[number], self._settings.filters)
        except ValueError:
            return None


def find_failed_filter(group: Group, filters: Filters) -> str | None:
    """The first filter that the sample fails; one that fails several counts for the first.

    Raises:
        ValueError: the sample has no similarity although one is asked for, or its image has no
            readable header.
    """
    if filters.min_similarity is not None and _similarity(group) < filters.min_similarity:
        return "min_similarity"
    images = group.image_members()
    if not images or (filters.min_resolution, filters.max_aspect_ratio) == (None, None):
        return None
    short_side, long_side = sorted(_member_size(group, images[0]))
    if filters.min_resolution is not None and short_side < filters.min_resolution:
        return "min_resolution"
    if filters.max_aspect_ratio is not None and long_side > filters.max_aspect_ratio * short_side:
        return "max_aspect_ratio"
    return None


def _similarity(group: Group) -> float:
    for member in group.members_of_kind("json"):
        content = parse_json(group.read_bytes(member), group.location)
        scores = (
            [content[key] for key in SCORE_KEYS if key in content]
            if isinstance(content, dict)
            else []
        )
        # `type`, as true is an int too
        if scores and type(scores[0]) in (int, float) and math.isfinite(scores[0]):
            return float(scores[0])
    raise ValueError(
        f"{group.location}: filters.min_similarity asks for a number under "
        f"{' or '.join(SCORE_KEYS)} in its .json, and there is none"
    )


def _member_size(group: Group, image: Member) -> tuple[int, int]:
    try:
        return image_size(group.read_bytes(image, HEAD_SIZE))
    except ValueError as error:
        if image.size <= HEAD_SIZE:
            raise ValueError(f"{group.location}: {error}") from error
    try:
        return image_size(group.read_bytes(image))
    except ValueError as error:
        raise ValueError(f"{group.location}: {error}") from error
