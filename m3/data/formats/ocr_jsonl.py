"""Images with questions and answers in turn, one object per line: {"id", "image", "data": [prompt, answer, ...]}.

The form of mllm-npu's OCR data. The image stands before the first prompt, unless a prompt says `<image>`.
"""

from pathlib import Path
from typing import Any

from m3.data.formats.files import JsonLines, id_of
from m3.data.formats.record import images_of, shown
from m3.data.sample import IMAGE_MARK, Sample, Turn


class OcrJsonl:
    """Conversations about one image, or several (a list in `image`)."""

    def __init__(self, path: str | Path, image_folder: str | Path | None = None) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.
            image_folder: what image paths are relative to; None for the file's own folder.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        self._lines = JsonLines(path)
        self.image_folder = None if image_folder is None else Path(image_folder)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        record, where = self._lines[index], self._lines.where(index)
        if not isinstance(record, dict) or "image" not in record or "data" not in record:
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{where}: expected an object with id, image and data, got {keys or 'an empty object'}")
        texts = _texts(record["data"], where)
        images = images_of(record["image"], where, self.image_folder or self._lines.file(index).parent)
        if not any(IMAGE_MARK in prompt for prompt in texts[::2]):
            texts = [f"{IMAGE_MARK}\n" * len(images) + texts[0], *texts[1:]]
        turns = tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
        try:
            return Sample(id_of(record, index), images, turns)
        except ValueError as error:
            raise type(error)(f"{where}: {error}") from None


def _texts(data: Any, where: str) -> list[str]:
    if not isinstance(data, list) or not data or len(data) % 2 or not all(isinstance(text, str) for text in data):
        raise ValueError(f"{where}: 'data' must be a list [prompt, answer, prompt, answer, ...], got {shown(data)}")
    return data
