"""Images with questions and answers in turn, one object per line: {"id", "image", "data": [prompt,
answer, ...]}.

The form of mllm-npu's OCR data. The image stands before the first prompt, unless a prompt says
`<image>`.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from m3.data.formats.fields import shown
from m3.data.formats.files import JsonLines
from m3.data.formats.record import Options, RecordReader
from m3.data.sample import Sample


class OcrJsonl:
    """Conversations about one image, or several (a list in `image`)."""

    def __init__(
        self, path: str | Path, image_folder: str | Path | None = None, ignore: Iterable[str] = ()
    ) -> None:
        """
        Args:
            path: a `.jsonl` file, a folder of them, or a pattern with `*`.
            image_folder: what image paths are relative to; None for the file's own folder.
            ignore: keys that are left out whatever they hold.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        self._lines = JsonLines(path)
        self.options = Options.of(image_folder, None, ignore)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        record, where = self._lines[index], self._lines.where(index)
        if not isinstance(record, dict) or "data" not in record:
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"{where}: expected an object with id, image and data, got "
                f"{keys or 'an empty object'}"
            )
        options = replace(
            self.options, image_folder=self.options.image_folder or self._lines.file(index).parent
        )
        reader = RecordReader(record, where, str(index), options)
        texts = _texts(reader.fields.raw("data"), where)
        return reader.rounds(list(zip(texts[::2], texts[1::2], strict=True)))


def _texts(data: Any, where: str) -> list[str]:
    if (
        not isinstance(data, list)
        or not data
        or len(data) % 2
        or not all(isinstance(text, str) for text in data)
    ):
        raise ValueError(
            f"{where}: 'data' must be a list [prompt, answer, prompt, answer, ...], "
            f"got {shown(data)}"
        )
    return data
