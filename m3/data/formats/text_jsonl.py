"""Plain text, one JSON object per line: {"text": "...", "id": optional}. All of it is learned (`m3/data/sample.py`)."""

from pathlib import Path

from m3.data.formats.files import JsonLines, id_of
from m3.data.sample import Document


class TextJsonl:
    """Documents without images. Other keys of a line are not read."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        self._lines = JsonLines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        record = self._lines[index]
        where = self._lines.where(index)
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{where}: expected an object with 'text', got {keys or 'an empty object'}")
        try:
            return Document(id_of(record, index), (), (record["text"],))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
