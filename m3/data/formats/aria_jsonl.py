"""Aria's fine-tuning data: `train.jsonl` beside its media, one object per line.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
 "images": ["a.jpg"]}                        or "video": {"path": "a.mp4", "num_frames": 8}, or neither
"""

from pathlib import Path
from typing import Any

from m3.data.formats.files import JsonLines
from m3.data.formats.messages import sample_from_messages
from m3.data.formats.record import images_of, shown
from m3.data.sample import Sample


class AriaJsonl:
    """Conversations in transformers' messages."""

    def __init__(self, path: str | Path, image_folder: str | Path | None = None) -> None:
        """
        Args:
            path: a `.jsonl` file, or a folder whose `train.jsonl` is read.
            image_folder: what media paths are relative to; None for the file's own folder.

        Raises:
            ValueError: no such file, or nothing in it.
        """
        given = Path(path)
        if given.is_dir() and not (given / "train.jsonl").is_file():
            raise ValueError(f"{path}: holds no train.jsonl (looked from {Path.cwd()})")
        self._lines = JsonLines(given / "train.jsonl" if given.is_dir() else given)
        self.image_folder = None if image_folder is None else Path(image_folder)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        record, where = self._lines[index], self._lines.where(index)
        if not isinstance(record, dict) or "messages" not in record:
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"{where}: expected an object with messages, and images or video; got {keys or 'an empty object'}"
            )
        id = str(record.get("id", index))
        folder = self.image_folder or self._lines.file(index).parent
        video = record.get("video")
        if video is None:
            return sample_from_messages(record["messages"], images_of(record.get("images"), where, folder), where, id)
        if record.get("images"):
            raise ValueError(f"{where}: names images and a video; a record may show one or the other")
        return _no_video(video, where)


def _no_video(video: Any, where: str) -> Sample:
    raise ValueError(
        f"{where}: shows a video ({shown(video)}), which this version cannot read. Write its frames as images and list "
        "them under 'images', with one part of type image for each"
    )
