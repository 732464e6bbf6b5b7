"""Interleaved text and images as MMC4 publishes them: one document per line, images in a folder.

{"text_list": ["First sentence.", "Second."], "image_info": [{"image_name": "a.jpg",
"matched_text_index": 1}]}

Each image stands before the sentence it was matched to, several in the order of the list. Other
keys (`raw_url`, `matched_sim`, `similarity_matrix` ...) are not used; content among them is
refused. VILA's pickles of the same keys are refused.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from m3.data.formats.fields import Fields, shown
from m3.data.formats.files import JsonLines
from m3.data.formats.interleaved import document_from_slots
from m3.data.formats.media import ImageFile
from m3.data.formats.record import Options, RecordReader
from m3.data.formats.tar_index import PICKLES
from m3.data.sample import Document


class InterleavedJsonl:
    """Documents whose text is `text_list` joined by spaces."""

    def __init__(
        self, path: str | Path, image_folder: str | Path | None = None, ignore: Iterable[str] = ()
    ) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.
            image_folder: what image names are relative to; None for the file's own folder.
            ignore: keys that are left out whatever they hold.

        Raises:
            ValueError: no such file, nothing in it, or pickles.
        """
        _refuse_pickles(Path(path))
        self._lines = JsonLines(path)
        self.options = Options.of(image_folder, None, ignore)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        record, where = self._lines[index], self._lines.where(index)
        options = replace(
            self.options, image_folder=self.options.image_folder or self._lines.file(index).parent
        )
        reader = RecordReader(record, where, str(index), options, expected=_EXPECTED)
        texts, infos = _checked(reader)
        before: list[list[ImageFile]] = [[] for _ in texts]
        for number, info in enumerate(infos):
            image, place = _image(info, len(texts), f"{where}, image {number}", reader)
            before[place].append(image)
        reader.fields.close(has_media=bool(infos))
        slots: list[ImageFile] = []
        is_image: list[bool] = []
        for images, text in zip(before, texts, strict=True):
            slots += [*images, text]
            is_image += [*(True for _ in images), False]
        return document_from_slots(reader.id, slots, is_image, where, reader.unused.keys)


_EXPECTED = "an object with 'text_list' (texts) and 'image_info' (a list)"


def _checked(reader: RecordReader) -> tuple[list[str], list[Any]]:
    texts, infos = reader.fields.raw("text_list"), reader.fields.raw("image_info")
    if (
        not isinstance(texts, list)
        or not isinstance(infos, list)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError(f"{reader.where}: expected {_EXPECTED}, got {shown(reader.fields.values)}")
    return texts, infos


def _image(info: Any, sentences: int, where: str, reader: RecordReader) -> tuple[ImageFile, int]:
    fields = Fields(info if isinstance(info, dict) else {}, where, reader.unused, "image_info")
    name, place = fields.raw("image_name"), fields.raw("matched_text_index")
    if (
        not isinstance(name, str)
        or not name
        or type(place) is not int
        or not 0 <= place < sentences
    ):
        raise ValueError(
            f"{where}: expected 'image_name' and a 'matched_text_index' from 0 to {sentences - 1}, "
            f"got {shown(info)}"
        )
    fields.close(has_media=True)
    return reader.media.image(name), place


def _refuse_pickles(path: Path) -> None:
    found = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
    for file in found:
        if file.suffix.lstrip(".").lower() in PICKLES:
            raise ValueError(
                f"{file}: is a pickle. Opening one can run any program it holds, so none is read. "
                "Write its content as "
                "JSON lines first, on a machine where you trust the file: see 'Pickled data' in "
                "docs/data.md"
            )
