"""LLaVA's columns in parquet files with the images inside (`image`: `datasets.Image`, or a list of
them).

Read through a memory-mapped Arrow copy that `datasets` makes once: any record is reached at once,
and its images stay encoded bytes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.exceptions import DatasetGenerationError

from m3.data.formats.files import check_index, find_files
from m3.data.formats.record import Options, sample_from_record
from m3.data.sample import Sample

COLUMNS = ("id", "image", "conversations")


class LlavaParquet:
    """Samples of one parquet file, a folder of them, or a list of files, by number."""

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        image_folder: str | Path | None = None,
        num_frames: int | None = None,
        ignore: Iterable[str] = (),
    ) -> None:
        """
        Args:
            path: a `.parquet` file, a folder (its `*.parquet`, in name order), or files.
            image_folder: what image paths are relative to, for records that hold paths instead of
                bytes.
            num_frames, ignore: of `Options`.

        Raises:
            ValueError: no such file, an empty folder, no `conversations` column, a file that is not
                parquet.
        """
        self.files = _files([path] if isinstance(path, str | Path) else list(path))
        self.options = Options.of(image_folder, num_frames, ignore)
        try:
            table = datasets.Dataset.from_parquet([str(file) for file in self.files])
        except (DatasetGenerationError, pyarrow.ArrowInvalid) as error:
            raise ValueError(
                f"{self._name()}: cannot be read as parquet ({error.__cause__ or error})"
            ) from error
        assert isinstance(table, datasets.Dataset)
        if "conversations" not in table.column_names:
            raise ValueError(
                f"{self._name()}: no column 'conversations' (columns: "
                f"{', '.join(table.column_names)}). "
                f"LLaVA's columns are {', '.join(COLUMNS)}"
            )
        self._table = table.cast(undecoded(table.features))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self), self._name())
        return sample_from_record(
            self._table[index], f"{self._name()}, record {index}", str(index), self.options
        )

    def _name(self) -> str:
        return (
            str(self.files[0])
            if len(self.files) == 1
            else f"{self.files[0]} and {len(self.files) - 1} more"
        )


def _files(paths: list[str | Path]) -> list[Path]:
    if not paths:
        raise ValueError("no parquet files were named")
    return [file for path in paths for file in find_files(path, (".parquet",))]


def undecoded(features: datasets.Features) -> datasets.Features:
    """The same columns, with images, videos and sounds left as encoded bytes, at any depth."""

    def leave(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, datasets.Video):
            return datasets.Video(decode=False)
        if isinstance(feature, datasets.Audio):
            return datasets.Audio(decode=False)
        if isinstance(feature, datasets.List | datasets.LargeList):
            return type(feature)(leave(feature.feature))
        if isinstance(feature, dict):
            return {name: leave(entry) for name, entry in feature.items()}
        return feature

    return datasets.Features({name: leave(feature) for name, feature in features.items()})
