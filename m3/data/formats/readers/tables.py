"""Rows of tables that `datasets` reads: parquet files, data sets of the hub, saved data sets.

Tables are memory-mapped Arrow files, which `datasets` makes once: any row is reached at once, and
its images stay encoded bytes. Training reads by position, so that a resumed run sees what the
uninterrupted one sees; a stream cannot be asked for its n-th sample. So data is on the local disk:
all of a split, or the first `take` samples, which are streamed once without downloading the rest.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.exceptions import DatasetGenerationError

from m3.data.formats.parsers.columns import COLUMN_PARSERS
from m3.data.formats.readers.files import find_files
from m3.data.formats.record import Record, RecordReader
from m3.data.formats.settings import SourceSettings

LLAVA_COLUMNS = ("id", "image", "conversations")
_STATE_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")
"""Files beside a table that tell how it came to be."""


class TableReader(RecordReader[Record]):
    """Rows of one table."""

    is_text = False

    def __init__(self, settings: SourceSettings) -> None:
        self.name = self.table_name(settings)
        table = self.open_table(settings)
        self.check_columns(table.column_names, settings)
        self._table = table.cast(_encoded_features(table.features))

    def table_name(self, settings: SourceSettings) -> str:
        """The table in messages."""
        return settings.path

    @abstractmethod
    def open_table(self, settings: SourceSettings) -> datasets.Dataset: ...

    @abstractmethod
    def check_columns(self, columns: list[str], settings: SourceSettings) -> None:
        """Raise a `ValueError` for a table that no sample can be made of."""

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return Record(self._table[index], f"{self.name}, record {index}", str(index))


class LlavaParquet(TableReader):
    """LLaVA's columns in parquet files, images inside: `datasets.Image`, or a list of them."""

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        return find_files(path, ".parquet")

    def table_name(self, settings: SourceSettings) -> str:
        first_file, *more_files = self.find_files(settings.path)
        return f"{first_file} and {len(more_files)} more" if more_files else str(first_file)

    def open_table(self, settings: SourceSettings) -> datasets.Dataset:
        files = self.find_files(settings.path)
        try:
            table = datasets.Dataset.from_parquet([str(file) for file in files])
        except (DatasetGenerationError, pyarrow.ArrowInvalid) as error:
            raise ValueError(
                f"{self.name}: cannot be read as parquet ({error.__cause__ or error})"
            ) from error
        assert isinstance(table, datasets.Dataset)
        return table

    def check_columns(self, columns: list[str], settings: SourceSettings) -> None:
        if "conversations" not in columns:
            raise ValueError(
                f"{self.name}: no column 'conversations' (columns: {', '.join(columns)}). LLaVA's "
                f"columns are {', '.join(LLAVA_COLUMNS)}"
            )


class HubTable(TableReader):
    """One split of a data set of the hub, of a folder of data files, or of `save_to_disk`."""

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        """The data files of a folder, without `_STATE_FILES`; none of a name on the hub."""
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        return [
            file
            for file in files
            if file.suffix in (".arrow", ".parquet", ".jsonl", ".csv")
            or (file.suffix == ".json" and file.name not in _STATE_FILES)
        ]

    def open_table(self, settings: SourceSettings) -> datasets.Dataset:
        split, take = settings.split or "train", settings.take
        saved_files = [Path(self.name) / name for name in ("dataset_dict.json", "state.json")]
        try:
            if any(file.is_file() for file in saved_files):
                table = _find_split(datasets.load_from_disk(self.name), self.name, split)
                return table if take is None else table.select(range(min(take, len(table))))
            if take is None:
                table = datasets.load_dataset(self.name, split=split)
            else:
                table = datasets.Dataset.from_generator(
                    _first_rows, gen_kwargs={"name": self.name, "split": split, "take": take}
                )
        except (DatasetGenerationError, FileNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"{self.name}: cannot be read as a data set ({error.__cause__ or error})"
            ) from error
        assert isinstance(table, datasets.Dataset)
        return table

    def check_columns(self, columns: list[str], settings: SourceSettings) -> None:
        ignored_columns = settings.ignore or ()
        if not any(name in COLUMN_PARSERS and name not in ignored_columns for name in columns):
            raise ValueError(
                f"{self.name}: has none of the columns {', '.join(COLUMN_PARSERS)} (columns: "
                f"{', '.join(columns)})"
            )


def _find_split(
    saved: datasets.Dataset | datasets.DatasetDict, name: str, split: str
) -> datasets.Dataset:
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"{name}: has no split {split!r} (splits: {', '.join(map(str, saved))})")
    return saved[split]


def _first_rows(name: str, split: str, take: int) -> Iterator[dict[str, Any]]:
    """The first `take` rows of a stream.

    A function of the module, so that `datasets` recognises an earlier call by it, and finds what it
    stored then.
    """
    stream = datasets.load_dataset(name, split=split, streaming=True)
    yield from stream.decode(False).take(take)


def _encoded_features(features: datasets.Features) -> datasets.Features:
    """The same columns, with images, videos and sounds left as encoded bytes, at any depth."""

    def leave_encoded(feature: Any) -> Any:
        if isinstance(feature, datasets.Image | datasets.Video | datasets.Audio):
            return type(feature)(decode=False)
        if isinstance(feature, datasets.List | datasets.LargeList):
            return type(feature)(leave_encoded(feature.feature))
        if isinstance(feature, dict):
            return {name: leave_encoded(entry) for name, entry in feature.items()}
        return feature

    return datasets.Features({name: leave_encoded(feature) for name, feature in features.items()})
