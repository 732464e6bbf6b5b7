"""LLaVA's instruction data: a JSON list (or one JSON object per line) beside a folder of images.

{"id": "...", "image": "coco/1.jpg" | ["a.jpg", "b.jpg"] | absent, or "video": "a.mp4", "system":
"..." or absent,
 "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A
 cat."}, ...]}
"""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m3.data.formats.files import JsonLines, check_index, check_plain, parse_json
from m3.data.formats.record import Options, sample_from_record
from m3.data.sample import Sample


class LlavaJson:
    """Samples of one `.json` or `.jsonl` file by number.

    Records of a `.json` are kept as encoded text in one buffer, not as Python objects: a tenth of
    the memory, and dataloader workers share it instead of copying it when they touch it. Of a
    `.jsonl` only the places of its lines are.
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        num_frames: int | None = None,
        ignore: Iterable[str] = (),
    ) -> None:
        """
        Args:
            path: the file.
            image_folder: what image paths are relative to; None for the file's own folder.
            num_frames, ignore: of `Options`.

        Raises:
            ValueError: no such file, not JSON, or not a list of records.
        """
        self.path = Path(path)
        self.options = Options.of(
            self.path.parent if image_folder is None else image_folder, num_frames, ignore
        )
        self._lines = JsonLines(self.path) if self.path.suffix == ".jsonl" else None
        lines = (
            []
            if self._lines is not None
            else [json.dumps(record).encode() for record in _records(self.path)]
        )
        self._ends = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        self._text = b"".join(lines)

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._lines is None else len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        check_index(index, len(self), str(self.path))
        if self._lines is not None:
            record, where = self._lines[index], self._lines.where(index)
        else:
            record = json.loads(self._text[self._ends[index] : self._ends[index + 1]])
            where = f"{self.path}, record {index}"
        return sample_from_record(record, where, str(index), self.options)


def _records(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such data file (looked from {Path.cwd()})")
    check_plain(path)
    records = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), str(path))
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: expected a JSON list of records, got {type(records).__name__}. One object "
            "per line? Name it "
            ".jsonl"
        )
    return records
