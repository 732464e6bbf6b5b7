"""A data set of the Hugging Face hub, or a folder that `datasets` wrote, with one of the columns of `COLUMNS`.

Training reads by position, so that a resumed run sees what the uninterrupted one sees; a stream cannot be asked for its
n-th sample. So data is on the local disk, memory-mapped: all of a split, or the first `take` samples, which are streamed
once without downloading the rest. `datasets` keeps both and finds them again.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from m3.data.formats.files import check_index
from m3.data.formats.llava_parquet import undecoded
from m3.data.formats.messages import sample_from_messages
from m3.data.formats.record import images_of, sample_from_record, shown
from m3.data.sample import AnySample, Document

Read = Callable[[dict[str, Any], str, str, Path | None], AnySample]


def _conversation(row: dict[str, Any], where: str, id: str, folder: Path | None) -> AnySample:
    images = row.get("images") if row.get("image") is None else row["image"]
    return sample_from_record({"id": id, "image": images, "conversations": row["conversations"]}, where, id, folder)


def _messages(row: dict[str, Any], where: str, id: str, folder: Path | None) -> AnySample:
    images = row.get("image") if row.get("images") is None else row["images"]
    return sample_from_messages(row["messages"], images_of(images, where, folder), where, id)


def _document(row: dict[str, Any], where: str, id: str, folder: Path | None) -> AnySample:
    if not isinstance(row["text"], str):
        raise ValueError(f"{where}: 'text' must be text, got {shown(row['text'])}")
    try:
        return Document(id, (), (row["text"],))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


COLUMNS: Mapping[str, Read] = {"conversations": _conversation, "messages": _messages, "text": _document}
"""The column that says how a data set's rows are read; the first that it has. Images are in `image` or `images`."""


class HfDataset:
    """Samples of one split by number. Images stay encoded bytes."""

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        split: str | None = None,
        take: int | None = None,
    ) -> None:
        """
        Args:
            path: a name on the hub, a folder of data files, or one written by `save_to_disk`.
            image_folder: what image paths are relative to, for rows that hold paths instead of images.
            split: `train` unless given.
            take: only the first so many samples; the others are not downloaded.

        Raises:
            ValueError: no such data set or split, or none of the columns.
        """
        self.name = str(path)
        self.image_folder = None if image_folder is None else Path(image_folder)
        table = _load(self.name, split or "train", take)
        kinds = [column for column in COLUMNS if column in table.column_names]
        if not kinds:
            raise ValueError(
                f"{self.name}: has none of the columns {', '.join(COLUMNS)} (columns: {', '.join(table.column_names)})"
            )
        self._read = COLUMNS[kinds[0]]
        kept = [column for column in ("id", kinds[0], "image", "images") if column in table.column_names]
        table = table.select_columns(kept)
        self._table = table.cast(undecoded(table.features))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> AnySample:
        check_index(index, len(self), self.name)
        row = self._table[index]
        id = row.get("id")
        where = f"{self.name}, record {index}"
        return self._read(row, where, str(index) if id is None else str(id), self.image_folder)


def _load(name: str, split: str, take: int | None) -> datasets.Dataset:
    written = (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file()
    try:
        if written:
            table = _split_of(datasets.load_from_disk(name), name, split)
            return table if take is None else table.select(range(min(take, len(table))))
        if take is None:
            table = datasets.load_dataset(name, split=split)
        else:
            table = datasets.Dataset.from_generator(_first, gen_kwargs={"name": name, "split": split, "take": take})
    except (DatasetGenerationError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"{name}: cannot be read as a data set ({error.__cause__ or error})") from error
    assert isinstance(table, datasets.Dataset)
    return table


def _split_of(found: datasets.Dataset | datasets.DatasetDict, name: str, split: str) -> datasets.Dataset:
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        raise ValueError(f"{name}: has no split {split!r} (splits: {', '.join(map(str, found))})")
    return found[split]


def _first(name: str, split: str, take: int) -> Iterator[dict[str, Any]]:
    """The rows that are kept; a module's function, so that `datasets` finds what it kept of an earlier call."""
    stream = datasets.load_dataset(name, split=split, streaming=True)
    yield from stream.decode(False).take(take)
