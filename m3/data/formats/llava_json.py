"""LLaVA's instruction data: a JSON list (or one JSON object per line) beside a folder of images.

{"id": "...", "image": "coco/1.jpg" | ["a.jpg", "b.jpg"] | absent,
 "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}, ...]}
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from m3.data.formats.record import sample_from_record
from m3.data.sample import Sample


class LlavaJson:
    """Samples of one `.json` or `.jsonl` file by number.

    Records are kept as encoded text in one buffer, not as Python objects: a tenth of the memory, and dataloader workers
    share it instead of copying it when they touch it.
    """

    def __init__(self, path: str | Path, image_folder: str | Path | None = None) -> None:
        """
        Args:
            path: the file.
            image_folder: what image paths are relative to; None for the file's own folder.

        Raises:
            ValueError: no such file, not JSON, or not a list of objects.
        """
        self.path = Path(path)
        self.image_folder = self.path.parent if image_folder is None else Path(image_folder)
        lines = [json.dumps(record).encode() for record in _records(self.path)]
        self._ends = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        self._text = b"".join(lines)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self.path}, which has {len(self)}")
        record = json.loads(self._text[self._ends[index] : self._ends[index + 1]])
        return sample_from_record(record, f"{self.path}, record {index}", str(index), self.image_folder)


def _records(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such data file (looked from {Path.cwd()})")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    if path.suffix == ".jsonl":
        return [
            _parse(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
    records = _parse(text, str(path))
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: expected a JSON list of records, got {type(records).__name__}. One object per line? Name it "
            ".jsonl"
        )
    return records


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
