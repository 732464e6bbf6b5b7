"""Aria's fine-tuning data: `train.jsonl` beside its media, one object per line.

{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
 "images": ["a.jpg"]}                        or "video": {"path": "a.mp4", "num_frames": 8}, or neither
"""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from m3.data.formats.files import JsonLines, id_of
from m3.data.formats.messages import sample_from_messages
from m3.data.formats.record import images_of, shown
from m3.data.sample import Sample
from m3.processing.video import Sampling, load_video


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
        id = id_of(record, index)
        folder = self.image_folder or self._lines.file(index).parent
        video = record.get("video")
        if video is None:
            return sample_from_messages(record["messages"], images_of(record.get("images"), where, folder), where, id)
        if record.get("images"):
            raise ValueError(f"{where}: names images and a video; a record may show one or the other")
        frames = _frames(video, where, folder)
        return sample_from_messages(record["messages"], frames, where, id, frames=len(frames))


def _frames(video: Any, where: str, folder: Path) -> tuple[bytes, ...]:
    """The frames of a video as PNG; as many as are asked for, or all that differ where it is too short for that."""
    path, number = (video.get("path"), video.get("num_frames", 8)) if isinstance(video, dict) else (None, None)
    if not isinstance(path, str) or not path or type(number) is not int:
        raise ValueError(f"{where}: 'video' must be an object with 'path' and 'num_frames', got {shown(video)}")
    try:
        pictures = load_video(folder / path, Sampling(num_frames=number)).frames
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return tuple(_png(picture) for picture in pictures)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # these bytes are decoded again at once
    return buffer.getvalue()
