"""Images with captions in tars: `k.jpg` beside `k.txt` (the caption) or `k.json` ({"caption": ...}); webdataset's layout.

Becomes a document: the image, then the caption, which is learned.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from m3.data.formats.files import check_index, parse_json
from m3.data.formats.filters import left_out_by
from m3.data.formats.tar_index import THREADS, Group, TarIndex
from m3.data.recipe import Filters
from m3.data.sample import Document


class CaptionTar:
    """One captioned image per sample of the tars. Other members and other keys of the JSON are not read.

    With `filters`, the samples that fail them have no number. What is needed for that (the record, the head of the image) is
    read at the start; a sample for which it cannot be read stays, and is refused when it is asked for.
    """

    def __init__(self, path: str | Path, filters: Filters | None = None) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.
            filters: of the recipe.

        Raises:
            ValueError: see `TarIndex`; the filters leave nothing.
        """
        self._tars, self._filters = TarIndex(path), filters
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
            raise ValueError(f"{path}: its filters leave none of {len(failed)} samples ({counts}); lower them")

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many samples each filter left out; one that fails several counts for the first."""
        return self._left_out

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Document:
        check_index(index, len(self), str(self._tars.files[0]))
        group = self._tars[int(self._numbers[index])]
        if self._filters is not None:
            left_out_by(group, self._filters)  # raises for one that could not be judged
        images = group.images()
        if len(images) != 1:
            raise ValueError(f"{group.where}: expected one image, got {len(images)} ({_names(group)})")
        try:
            return Document(group.key, (group.read(images[0]),), ("", _caption(group)))
        except ValueError as error:
            raise error if str(error).startswith(group.where) else ValueError(f"{group.where}: {error}") from None

    def _failed(self, number: int) -> str | None:
        assert self._filters is not None  # only then is it asked
        try:
            return left_out_by(self._tars[number], self._filters)
        except ValueError:
            return None


def _caption(group: Group) -> str:
    texts, records = group.find("txt"), group.find("json")
    if texts:
        try:
            return group.read(texts[0]).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{group.where}: not UTF-8 text ({error})") from error
    if not records:
        raise ValueError(f"{group.where}: has no caption; expected a .txt or a .json member ({_names(group)})")
    record = parse_json(group.read(records[0]), group.where)
    if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
        keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{group.where}: expected an object with 'caption', got {keys or 'an empty object'}")
    return record["caption"].strip()


def _names(group: Group) -> str:
    return "members: " + ", ".join(f".{member.suffix}" for member in group.members)
