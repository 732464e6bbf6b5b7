"""Plain text and code: every file of a folder (with its sub-folders) is a document, or several
if it is long.
"""

import codecs
from collections import Counter
from pathlib import Path

import numpy as np

from m3.data.formats.readers.files import existing_files
from m3.data.formats.record import Record, RecordReader
from m3.data.formats.settings import SourceSettings

SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".tex", ".html", ".css", ".xml", ".json", ".yaml", ".yml"),
        *(".toml", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go"),
        *(".rs", ".rb", ".php", ".sh", ".sql", ".r", ".jl", ".scala", ".swift", ".kt", ".cs"),
        *(".lua", ".pl", ".hs", ".ml"),
    }
)
"""Files of a folder that are read. A file that is named itself may end in anything."""

DEFAULT_CHUNK_BYTES = 8192


class TextFiles(RecordReader[Record]):
    """Texts of a file, or of every text file of a folder, in the order of their names.

    Files longer than `chunk_bytes` are split behind the last line end that fits; a longer line
    between characters. A piece of a byte-level vocabulary is at least one byte, so `chunk_bytes`
    bounds tokens. Memory holds where pieces begin and end; text is read when it is asked for. Ids
    are `file:first byte`.
    """

    @classmethod
    def find_files(cls, path: str) -> list[Path]:
        """The file itself, or every text file of a folder at any depth, by name."""
        root = Path(path)
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise ValueError(f"{root}: no such file or folder (looked from {Path.cwd()})")
        files = existing_files(file for file in root.rglob("*") if _is_text(file))
        if not files:
            raise ValueError(
                f"{root}: holds no text files; looked for {' '.join(sorted(SUFFIXES))}. Name a "
                "file to read any other"
            )
        return files

    def __init__(self, settings: SourceSettings) -> None:
        root = Path(settings.path)
        self.files = self.find_files(settings.path)
        others = [file for file in root.rglob("*") if not _is_text(file) and file.is_file()]
        self.unread = Counter(
            f"files {file.suffix.lower() or 'without a suffix'}" for file in others if root.is_dir()
        )
        max_bytes = settings.chunk_bytes or DEFAULT_CHUNK_BYTES
        pieces = [_split_file(file, max_bytes) for file in self.files]
        self._file_of = np.repeat(
            np.arange(len(self.files), dtype=np.int32), [len(file_pieces) for file_pieces in pieces]
        )
        self._pieces = np.concatenate(pieces)
        if not len(self._pieces):
            raise ValueError(f"{settings.path}: holds no text")

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Record:
        path = self.files[self._file_of[index]]
        start, end = map(int, self._pieces[index])
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8")
        return Record({"text": text}, f"{path}, byte {start}", f"{path}:{start}")


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _split_file(path: Path, max_bytes: int) -> np.ndarray:
    """`[p, 2]` first byte and end of each piece with text in it."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error}). Convert it, or take it out of the folder"
        ) from error
    pieces: list[tuple[int, int]] = []
    start = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    while start < len(content):
        end = min(start + max_bytes, len(content))
        if end < len(content):
            line_end = content.rfind(b"\n", start, end)
            end = line_end + 1 if line_end >= 0 else _character_end(content, start, end)
        if content[start:end].strip():
            pieces.append((start, end))
        start = end
    return np.asarray(pieces, dtype=np.int64).reshape(-1, 2)


def _character_end(content: bytes, start: int, end: int) -> int:
    """The last position up to `end` between two characters, behind at least one of them."""
    position = end
    while position > start and _continues(content, position):
        position -= 1
    if position > start:
        return position
    position = end
    while position < len(content) and _continues(content, position):
        position += 1
    return position


def _continues(content: bytes, position: int) -> bool:
    """Tell whether a byte continues a character of UTF-8 (10xxxxxx)."""
    return content[position] & 0xC0 == 0x80
