"""Plain text, one JSON object per line: {"text": "...", "id": optional}.

All of it is learned (`m3/data/sample.py`).
"""

from collections.abc import Iterable
from pathlib import Path

from m3.data.formats.files import JsonLines
from m3.data.formats.record import Options, RecordReader
from m3.data.sample import Document


class TextJsonl:
    """Documents without images."""

    def __init__(self, path: str | Path, ignore: Iterable[str] = ()) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.
            ignore: keys that are left out whatever they hold.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        self._lines = JsonLines(path)
        self.options = Options.of(None, None, ignore)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        record = self._lines[index]
        where = self._lines.where(index)
        reader = RecordReader(
            record, where, str(index), self.options, expected="an object with 'text'"
        )
        text = reader.fields.raw("text")
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: expected an object with 'text', got "
                f"{', '.join(record) or 'an empty object'}"
            )
        return reader.document([text], [])
