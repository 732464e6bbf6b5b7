"""Plain text and code: every file of a folder (with its sub-folders) is a document, or several
if it is long.
"""

import codecs
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m3.data.formats.files import check_index, present
from m3.data.sample import Document

SUFFIXES = frozenset(
    {
        *(
            ".txt",
            ".md",
            ".rst",
            ".tex",
            ".html",
            ".css",
            ".xml",
            ".json",
            ".yaml",
            ".yml",
            ".toml",
        ),
        *(
            ".py",
            ".c",
            ".h",
            ".cc",
            ".cpp",
            ".hpp",
            ".cu",
            ".java",
            ".js",
            ".ts",
            ".go",
            ".rs",
            ".rb",
            ".php",
            ".sh",
        ),
        *(".sql", ".r", ".jl", ".scala", ".swift", ".kt", ".cs", ".lua", ".pl", ".hs", ".ml"),
    }
)
"""What is taken for text in a folder. A file that is named itself may end in anything."""

CHUNK_BYTES = 8192


class TextFiles:
    """Documents without images.

    A piece of a byte-level vocabulary is at least one byte, so `chunk_bytes` bounds tokens.

    Memory holds where pieces begin and end; text is read when it is asked for. Ids are `file:first
    byte`.
    """

    def __init__(self, path: str | Path, chunk_bytes: int | None = None) -> None:
        """
        Args:
            path: a file, or a folder of which every text file at any depth is read, in the order of
                their names.
            chunk_bytes: bytes a piece may have. Files are split behind the last line end that fits;
                a longer line between characters.

        Raises:
            ValueError: no such file, no text in it, a file that is not UTF-8 text.
        """
        self.root = Path(path)
        self.files, self._unread = _text_files(self.root)
        pieces = [_pieces(file, chunk_bytes or CHUNK_BYTES) for file in self.files]
        self._file_of = np.repeat(
            np.arange(len(self.files), dtype=np.int32), [len(found) for found in pieces]
        )
        self._pieces = np.concatenate(pieces)
        if not len(self._pieces):
            raise ValueError(f"{path}: holds no text")

    @property
    def unread(self) -> Mapping[str, int]:
        """Number of files of the folder that are no text, by suffix."""
        return self._unread

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Document:
        check_index(index, len(self), str(self.root))
        path = self.files[self._file_of[index]]
        start, end = map(int, self._pieces[index])
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(end - start).decode("utf-8")
        return Document(f"{path}:{start}", (), (text,))


def text_files(path: str | Path) -> list[Path]:
    """The file itself, or every text file of a folder at any depth, by name; a `ValueError` if
    there is none.
    """
    return _text_files(Path(path))[0]


def _text_files(root: Path) -> tuple[list[Path], Counter[str]]:
    """The files that are read; how many are not, by suffix."""
    if root.is_file():
        return [root], Counter()
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder (looked from {Path.cwd()})")
    entries = list(root.rglob("*"))
    found = present(file for file in entries if file.suffix.lower() in SUFFIXES)
    others = [file for file in entries if file.suffix.lower() not in SUFFIXES and file.is_file()]
    if not found:
        raise ValueError(
            f"{root}: holds no text files; looked for {' '.join(sorted(SUFFIXES))}. Name a file to "
            "read any other"
        )
    return found, Counter(f"files {file.suffix.lower() or 'without a suffix'}" for file in others)


def _pieces(path: Path, limit: int) -> np.ndarray:
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
        end = min(start + limit, len(content))
        if end < len(content):
            line_end = content.rfind(b"\n", start, end)
            end = line_end + 1 if line_end >= 0 else _character_start(content, start, end)
        if content[start:end].strip():
            pieces.append((start, end))
        start = end
    return np.asarray(pieces, dtype=np.int64).reshape(-1, 2)


def _character_start(content: bytes, start: int, end: int) -> int:
    """The last place up to `end` where a character begins (bytes 10xxxxxx continue one); at
    least one is kept.
    """
    place = end
    while place > start and content[place] & 0xC0 == 0x80:
        place -= 1
    if place > start:
        return place
    place = end
    while place < len(content) and content[place] & 0xC0 == 0x80:
        place += 1
    return place
