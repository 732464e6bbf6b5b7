"""Images with captions in tars: `k.jpg` beside `k.txt` (the caption) or `k.json` ({"caption":
...}); webdataset's layout.

Becomes a document: the image, then the caption, which is learned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from m3.data.formats.fields import Fields, Unused, close_group
from m3.data.formats.files import check_index, parse_json
from m3.data.formats.filters import SCORES, left_out_by
from m3.data.formats.tar_index import THREADS, Group, Member, TarIndex
from m3.data.recipe import Filters
from m3.data.sample import Document


class CaptionTar:
    """One captioned image per sample of the tars.

    Where both a text and a JSON hold the caption, they must agree.

    With `filters`, the samples that fail them have no number. What is needed for that (the record,
    the head of the image) is read at the start; a sample for which it cannot be read stays, and is
    refused when it is asked for.
    """

    def __init__(
        self, path: str | Path, filters: Filters | None = None, ignore: Iterable[str] = ()
    ) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.
            filters: of the recipe.
            ignore: keys and kinds of members that are left out whatever they hold.

        Raises:
            ValueError: see `TarIndex`; the filters leave nothing.
        """
        self._tars, self._filters, self._ignore = TarIndex(path), filters, frozenset(ignore)
        self._numbers = np.arange(len(self._tars))
        self._left_out = Counter[str]()
        if filters is None:
            return
        with ThreadPoolExecutor(THREADS) as threads:  # much of it is waiting for the disk
            failed = list(threads.map(self._failed, range(len(self._tars))))
        self._left_out.update(name for name in failed if name is not None)
        self._numbers = np.flatnonzero([name is None for name in failed])
        if not len(self._numbers):
            counts = ", ".join(f"{count} {name}" for name, count in self._left_out.items())
            raise ValueError(
                f"{path}: its filters leave none of {len(failed)} samples ({counts}); lower them"
            )

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many samples each filter left out; one that fails several counts for the first."""
        return self._left_out

    @property
    def unread(self) -> Mapping[str, int]:
        """Members that belong to no sample."""
        return self._tars.unread

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Document:
        check_index(index, len(self), str(self._tars.files[0]))
        group = self._tars[int(self._numbers[index])]
        if self._filters is not None:
            left_out_by(group, self._filters)  # raises for one that could not be judged
        unused = Unused(self._ignore)
        images = [
            member for member in group.images() if not unused.ignores(member.suffix, member.kind)
        ]
        if len(images) != 1:
            raise ValueError(
                f"{group.where}: expected one image, got {len(images)} ({_names(group)})"
            )
        caption, used = _caption(group, unused, self._filters)
        close_group(group, [images[0], *used], unused)
        try:
            return Document(group.key, (group.read(images[0]),), ("", caption), tuple(unused.keys))
        except ValueError as error:
            raise ValueError(f"{group.where}: {error}") from None

    def _failed(self, number: int) -> str | None:
        assert self._filters is not None  # only then is it asked
        try:
            return left_out_by(self._tars[number], self._filters)
        except ValueError:
            return None


def _caption(group: Group, unused: Unused, filters: Filters | None) -> tuple[str, list[Member]]:
    """The caption, and the members that hold it."""
    texts = [
        member for member in group.find("txt") if not unused.ignores(member.suffix, member.kind)
    ][:1]
    records = [
        member for member in group.find("json") if not unused.ignores(member.suffix, member.kind)
    ][:1]
    captions = [*(_text(group, member) for member in texts)]
    for member in records:
        record = parse_json(group.read(member), group.where)
        if not isinstance(record, dict):
            raise ValueError(
                f"{group.where}: expected an object with 'caption', got {type(record).__name__}"
            )
        fields = Fields(record, group.where, unused)
        caption = fields.take("caption")
        for score in SCORES if filters is not None and filters.min_similarity is not None else ():
            fields.raw(score)  # the filters read it
        if isinstance(caption, str):
            captions.append(caption.strip())
        elif not texts or caption is not None:
            keys = ", ".join(record) or "an empty object"
            raise ValueError(f"{group.where}: expected an object with 'caption', got {keys}")
        fields.close(has_media=True)
    if not captions:
        raise ValueError(
            f"{group.where}: has no caption; expected a .txt or a .json member ({_names(group)})"
        )
    if captions[0] != captions[-1]:
        raise ValueError(
            f"{group.where}: its .txt and its .json have different captions; keep one of them, or "
            "list 'txt' or 'caption' "
            "under the source's `ignore`"
        )
    return captions[0], [*texts, *records]


def _text(group: Group, member: Member) -> str:
    try:
        return group.read(member).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{group.where}: not UTF-8 text ({error})") from error


def _names(group: Group) -> str:
    return "members: " + ", ".join(f".{member.suffix}" for member in group.members)
