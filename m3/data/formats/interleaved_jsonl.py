"""Interleaved text and images as MMC4 publishes them: one document per line, images in a folder.

{"text_list": ["First sentence.", "Second."], "image_info": [{"image_name": "a.jpg", "matched_text_index": 1}]}

Each image stands before the sentence it was matched to, several in the order of the list. Other keys (`raw_url`,
`matched_sim`, `similarity_matrix` ...) are not read. VILA's pickles of the same keys are refused.
"""

from pathlib import Path
from typing import Any

from m3.data.formats.files import JsonLines, id_of
from m3.data.formats.interleaved import document_from_slots
from m3.data.formats.record import shown
from m3.data.formats.tar_index import PICKLES
from m3.data.sample import Document


class InterleavedJsonl:
    """Documents whose text is `text_list` joined by spaces."""

    def __init__(self, path: str | Path, image_folder: str | Path | None = None) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.
            image_folder: what image names are relative to; None for the file's own folder.

        Raises:
            ValueError: no such file, nothing in it, or pickles.
        """
        _refuse_pickles(Path(path))
        self._lines = JsonLines(path)
        self.image_folder = None if image_folder is None else Path(image_folder)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        record, where = self._lines[index], self._lines.where(index)
        texts, infos = _checked(record, where)
        folder = self.image_folder or self._lines.file(index).parent
        before: list[list[str]] = [[] for _ in texts]
        for number, info in enumerate(infos):
            name, place = _image(info, len(texts), f"{where}, image {number}")
            before[place].append(str(folder / name))
        slots: list[str] = []
        is_image: list[bool] = []
        for images, text in zip(before, texts, strict=True):
            slots += [*images, text]
            is_image += [*(True for _ in images), False]
        return document_from_slots(id_of(record, index), slots, is_image, where)


def _checked(record: Any, where: str) -> tuple[list[str], list[Any]]:
    texts, infos = (record.get("text_list"), record.get("image_info")) if isinstance(record, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(infos, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: expected an object with 'text_list' (texts) and 'image_info' (a list), got {shown(record)}"
        )
    return texts, infos


def _image(info: Any, sentences: int, where: str) -> tuple[str, int]:
    name, place = (info.get("image_name"), info.get("matched_text_index")) if isinstance(info, dict) else (None, None)
    if not isinstance(name, str) or not name or type(place) is not int or not 0 <= place < sentences:
        raise ValueError(
            f"{where}: expected 'image_name' and a 'matched_text_index' from 0 to {sentences - 1}, got {shown(info)}"
        )
    return name, place


def _refuse_pickles(path: Path) -> None:
    found = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    for file in found:
        if file.suffix.lstrip(".").lower() in PICKLES:
            raise ValueError(
                f"{file}: is a pickle. Opening one can run any program it holds, so none is read. Write its content as "
                "JSON lines first, on a machine where you trust the file: see 'Pickled data' in docs/data.md"
            )
