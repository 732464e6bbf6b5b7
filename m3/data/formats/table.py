"""Formats of data, one row each: a reader that finds records, and a parser that reads one.

In: a source of a recipe. Out: its samples by number. docs/data.md shows an example of each format.

A new format is a row of `FORMATS` and its name in `m3/data/formats/settings.py`. Where no reader of `readers/` or no parser
of `parsers/` fits, it brings its own, in one file there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from m3.data.formats.parsers.columns import parse_columns
from m3.data.formats.parsers.conversation import parse_conversation, parse_messages
from m3.data.formats.parsers.documents import parse_caption, parse_text
from m3.data.formats.parsers.interleaved import parse_slots, parse_text_list
from m3.data.formats.parsers.questions import parse_ocr
from m3.data.formats.readers.json_records import InterleavedLines, JsonFile, JsonLines, TrainLines
from m3.data.formats.readers.tables import HubTable, LlavaParquet
from m3.data.formats.readers.tars import ConversationTar, FilteredTar, JsonTar
from m3.data.formats.readers.text_files import TextFiles
from m3.data.formats.record import AnyRecord, RecordReader
from m3.data.formats.settings import FormatName, SourceSettings
from m3.data.sample import AnySample


@dataclass(frozen=True)
class DataFormat(Generic[AnyRecord]):
    """A format: how records are found, how one becomes a sample, and what a source may say.

    `options`: those of `SourceSettings` that reader or parser look at.
    """

    reader: type[RecordReader[AnyRecord]]
    parse: Callable[[AnyRecord, SourceSettings], AnySample]
    options: tuple[str, ...]


_MEDIA = ("image_folder", "num_frames", "ignore")
FORMATS: dict[FormatName, DataFormat[Any]] = {
    "llava_json": DataFormat(JsonFile, parse_conversation, _MEDIA),
    "llava_parquet": DataFormat(LlavaParquet, parse_conversation, _MEDIA),
    "llava_tar": DataFormat(ConversationTar, parse_conversation, ("num_frames", "ignore")),
    "aria_jsonl": DataFormat(TrainLines, parse_messages, _MEDIA),
    "caption_tar": DataFormat(FilteredTar, parse_caption, ("filters", "ignore")),
    "interleaved_jsonl": DataFormat(InterleavedLines, parse_text_list, ("image_folder", "ignore")),
    "interleaved_tar": DataFormat(JsonTar, parse_slots, ("ignore",)),
    "ocr_jsonl": DataFormat(JsonLines, parse_ocr, ("image_folder", "ignore")),
    "text_jsonl": DataFormat(JsonLines, parse_text, ("ignore",)),
    "text_files": DataFormat(TextFiles, parse_text, ("chunk_bytes",)),
    "hf_dataset": DataFormat(HubTable, parse_columns, (*_MEDIA, "split", "take")),
}
"""Name in a recipe -> how it is read."""


class FormatSamples:
    """Samples of one source by number: records of its format's reader, parsed one at a time."""

    def __init__(self, data_format: DataFormat[Any], settings: SourceSettings) -> None:
        """
        Raises:
            ValueError: a file is missing or of another format.
        """
        self._format, self._settings = data_format, settings
        self.records = data_format.reader(settings)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> AnySample:
        if not 0 <= index < len(self.records):
            raise IndexError(
                f"record {index} of {self._settings.path}, which has {len(self.records)}"
            )
        return self._format.parse(self.records[index], self._settings)
