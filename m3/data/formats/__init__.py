"""Formats of data: their table is m3/data/formats/table.py, and is imported when it is first asked
for; names and settings, which recipes are checked against, need none of its readers.
"""

from typing import TYPE_CHECKING, Any

from m3.data.formats.settings import FormatName

if TYPE_CHECKING:
    from m3.data.formats.table import FORMATS, DataFormat, FormatSamples


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from m3.data.formats import table

    return vars(table)[name]


__all__ = ["FORMATS", "DataFormat", "FormatName", "FormatSamples"]
