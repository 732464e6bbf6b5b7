"""Rows of tables whose columns say which layout they have."""

from collections.abc import Callable, Mapping

from m3.data.formats.content_keys import is_present
from m3.data.formats.parsers.conversation import parse_conversation
from m3.data.formats.parsers.documents import parse_captioned
from m3.data.formats.parsers.questions import parse_question, parse_rounds
from m3.data.formats.record import Record
from m3.data.formats.settings import SourceSettings
from m3.data.sample import AnySample

COLUMN_PARSERS: Mapping[str, Callable[[Record, SourceSettings], AnySample]] = {
    "conversations": parse_conversation,
    "messages": parse_conversation,
    "texts": parse_rounds,
    "question": parse_question,
    "text": parse_captioned,
    "caption": parse_captioned,
}
"""Column -> parser of a row: that of the first column that is not empty counts.

Images are in `image` or `images`.
"""


def parse_columns(record: Record, settings: SourceSettings) -> AnySample:
    """A row by its columns; `m3.data.formats.readers.tables.HubTable` refuses a table of others."""
    ignored_columns = settings.ignore or ()
    columns = [
        name for name in COLUMN_PARSERS if name in record.content and name not in ignored_columns
    ]
    filled_columns = [name for name in columns if is_present(record.content[name])]
    return COLUMN_PARSERS[[*filled_columns, *columns][0]](record, settings)
