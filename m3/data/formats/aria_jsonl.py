"""Aria's fine-tuning data: `train.jsonl` beside its media, one object per line.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
 "images": ["a.jpg"]}                        or "video": {"path": "a.mp4", "num_frames": 8}, or neither
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from m3.data.formats.files import JsonLines
from m3.data.formats.record import Options, sample_from_record
from m3.data.sample import Sample


class AriaJsonl:
    """Conversations in transformers' messages."""

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        num_frames: int | None = None,
        ignore: Iterable[str] = (),
    ) -> None:
        """
        Args:
            path: a `.jsonl` file, or a folder whose `train.jsonl` is read.
            image_folder: what media paths are relative to; None for the file's own folder.
            num_frames, ignore: of `Options`.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        given = Path(path)
        if given.is_dir() and not (given / "train.jsonl").is_file():
            raise ValueError(f"{path}: holds no train.jsonl (looked from {Path.cwd()})")
        self._lines = JsonLines(given / "train.jsonl" if given.is_dir() else given)
        self.options = Options.of(image_folder, num_frames, ignore)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        record, where = self._lines[index], self._lines.where(index)
        if not isinstance(record, dict) or "messages" not in record:
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"{where}: expected an object with messages, and images or video; got "
                f"{keys or 'an empty object'}"
            )
        options = replace(
            self.options, image_folder=self.options.image_folder or self._lines.file(index).parent
        )
        return sample_from_record(record, where, str(index), options)
