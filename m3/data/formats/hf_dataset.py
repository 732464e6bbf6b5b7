"""A data set of the Hugging Face hub, or a folder that `datasets` wrote, with one of the columns of
`COLUMNS`.

Training reads by position, so that a resumed run sees what the uninterrupted one sees; a stream
cannot be asked for its n-th sample. So data is on the local disk, memory-mapped: all of a split, or
the first `take` samples, which are streamed once without downloading the rest. `datasets` keeps
both and finds them again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from m3.data.formats.content_keys import is_given
from m3.data.formats.fields import Fields, shown
from m3.data.formats.files import check_index
from m3.data.formats.llava_parquet import undecoded
from m3.data.formats.record import Options, RecordReader
from m3.data.formats.turns import rows_of
from m3.data.sample import AnySample


def _rounds(reader: RecordReader) -> AnySample:
    """the_cauldron's and FineVision's `texts`."""
    entries = rows_of(reader.fields.raw("texts"))
    rounds: list[tuple[str, str]] = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = f"{reader.where}, texts {number}"
        fields = Fields(entry if isinstance(entry, dict) else {}, where, reader.unused, "texts")
        question, answer = fields.raw("user"), fields.raw("assistant")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise ValueError(
                f"{where}: expected an object with 'user' and 'assistant', texts "
                f"both; got {shown(entry)}"
            )
        fields.close()
        rounds.append((question, answer))
    return reader.rounds(rounds)


def _question(reader: RecordReader) -> AnySample:
    question, answer = reader.fields.raw("question"), reader.fields.raw("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(
            f"{reader.where}: 'question' and 'answer' must be texts, got {shown(question)} and "
            f"{shown(answer)}"
        )
    return reader.rounds([(question, answer)])


def _document(reader: RecordReader) -> AnySample:
    """Text; or an image, or several, and then its caption."""
    text = reader.fields.take("text", "caption")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{reader.where}: 'text' must be text, got {shown(text)}")
    visuals, _ = reader.visuals()
    images = [image for visual in visuals for image in visual]
    return reader.document([*("" for _ in images), text or ""], images)


COLUMNS: Mapping[str, Callable[[RecordReader], AnySample]] = {
    "conversations": RecordReader.conversation,
    "messages": RecordReader.conversation,
    "texts": _rounds,
    "question": _question,
    "text": _document,
    "caption": _document,
}
"""The column that says how a row is read: the first that is not empty in it.

Images are in `image` or `images`.
"""


class HfDataset:
    """Samples of one split by number. Images stay encoded bytes."""

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        split: str | None = None,
        take: int | None = None,
        num_frames: int | None = None,
        ignore: Iterable[str] = (),
    ) -> None:
        """
        Args:
            path: a name on the hub, a folder of data files, or one written by `save_to_disk`.
            image_folder: what image paths are relative to, for rows that hold paths instead of
                images.
            split: `train` unless given.
            take: only the first so many samples; the others are not downloaded.
            num_frames, ignore: of `Options`.

        Raises:
            ValueError: no such data set or split, or none of the columns.
        """
        self.name = str(path)
        self.options = Options.of(image_folder, num_frames, ignore)
        table = _load(self.name, split or "train", take)
        self._columns = [
            column for column in COLUMNS if column in table.column_names and column not in ignore
        ]
        if not self._columns:
            raise ValueError(
                f"{self.name}: has none of the columns {', '.join(COLUMNS)} (columns: "
                f"{', '.join(table.column_names)})"
            )
        self._table = table.cast(undecoded(table.features))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> AnySample:
        check_index(index, len(self), self.name)
        row = self._table[index]
        given = [column for column in self._columns if is_given(row[column])]
        reader = RecordReader(row, f"{self.name}, record {index}", str(index), self.options)
        return COLUMNS[[*given, *self._columns][0]](reader)


def _load(name: str, split: str, take: int | None) -> datasets.Dataset:
    written = (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file()
    try:
        if written:
            table = _split_of(datasets.load_from_disk(name), name, split)
            return table if take is None else table.select(range(min(take, len(table))))
        if take is None:
            table = datasets.load_dataset(name, split=split)
        else:
            table = datasets.Dataset.from_generator(
                _first, gen_kwargs={"name": name, "split": split, "take": take}
            )
    except (DatasetGenerationError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{name}: cannot be read as a data set ({error.__cause__ or error})"
        ) from error
    assert isinstance(table, datasets.Dataset)
    return table


def _split_of(
    found: datasets.Dataset | datasets.DatasetDict, name: str, split: str
) -> datasets.Dataset:
    if isinstance(found, datasets.Dataset):
        return found
    if split not in found:
        raise ValueError(f"{name}: has no split {split!r} (splits: {', '.join(map(str, found))})")
    return found[split]


def _first(name: str, split: str, take: int) -> Iterator[dict[str, Any]]:
    """The rows that are kept; a module's function, so that `datasets` finds what it kept of an
    earlier call.
    """
    stream = datasets.load_dataset(name, split=split, streaming=True)
    yield from stream.decode(False).take(take)


def table_files(path: str) -> list[Path]:
    """The data files of a folder, without what tells how they came to be; none of a name on the
    hub.
    """
    files = (
        sorted(file for file in Path(path).rglob("*") if file.is_file())
        if Path(path).is_dir()
        else []
    )
    return [
        file
        for file in files
        if file.suffix in (".arrow", ".parquet", ".jsonl", ".csv") or _is_records(file)
    ]


def _is_records(file: Path) -> bool:
    return file.suffix == ".json" and file.name not in (
        "state.json",
        "dataset_info.json",
        "dataset_dict.json",
    )
