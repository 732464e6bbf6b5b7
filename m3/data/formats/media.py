"""Images and videos of a record: paths, encoded bytes, and the frames of videos as PNG."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from m3.data.formats.content_keys import is_present
from m3.data.formats.fields import RecordFields, UnusedKeys, shorten
from m3.processing.video import Sampling, load_video

DEFAULT_FRAMES = 8
"""Frames of a video, where neither the record nor the source says how many."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")

ImageFile = str | bytes
"""The path of an image, or its encoded bytes."""


@dataclass(frozen=True)
class MediaReader:
    """Reads the images and videos that one record names.

    `location`: file and record, for messages. `resolve`: the path that a record writes to the file,
    or to its bytes. `num_frames`: of videos whose record does not say it.
    """

    location: str
    unused: UnusedKeys
    resolve: Callable[[str], ImageFile]
    num_frames: int | None = None

    def read_images(self, value: Any) -> tuple[ImageFile, ...]:
        """Nothing, one image or a list."""
        return tuple(self.read_image(entry) for entry in _entries(value))

    def read_image(self, value: Any) -> ImageFile:
        """A path, a `data:` address, bytes, or `{bytes, path}` (the form of `datasets.Image`)."""
        image_file = self._read_file(value, "image")
        if image_file is None:
            raise ValueError(
                f"{self.location}: 'image' must be a path, encoded bytes, a list of these or "
                f"absent, got {shorten(value)}"
            )
        return image_file

    def read_videos(self, value: Any) -> list[tuple[ImageFile, ...]]:
        """The frames of nothing, one video or a list."""
        return [self.read_video(entry) for entry in _entries(value)]

    def read_video(self, value: Any) -> tuple[ImageFile, ...]:
        """Frames of a video as PNG, in order.

        There are as many as the record or the source says, or all that differ in a video too short
        for that.
        """
        num_frames: Any = self.num_frames or DEFAULT_FRAMES
        video_entry: Any = value
        if isinstance(value, dict):
            fields = RecordFields(value, f"{self.location}, video", self.unused, "video")
            record_frames = fields.read_one("num_frames")
            num_frames = num_frames if record_frames is None else record_frames
            video_entry = {"bytes": fields.read_one("bytes"), "path": fields.read_one("path")}
            fields.close(strict=True)
        video_file = self._read_file(video_entry, "video")
        if (
            video_file is None
            or type(num_frames) is not int
            or (isinstance(video_file, str) and video_file.startswith("data:"))
        ):
            raise ValueError(
                f"{self.location}: 'video' must be a path, or an object with 'path' and "
                f"'num_frames', got {shorten(value)}"
            )
        try:
            frames = load_video(video_file, Sampling(num_frames=num_frames)).frames
        except ValueError as error:
            raise ValueError(f"{self.location}: {error}") from error
        return tuple(_encode_png(frame) for frame in frames)

    def _read_file(self, value: Any, kind: str) -> ImageFile | None:
        """The file; None for a value that is no file."""
        if isinstance(value, dict):
            fields = RecordFields(value, f"{self.location}, {kind}", self.unused, kind)
            content, path = fields.read_one("bytes"), fields.read_one("path")
            fields.close(has_media=True)
            value = path if content is None else content
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            return None
        if value.startswith("data:"):
            return value
        return self.resolve(_file_path(value, f"{self.location}: {kind} {shorten(value)}"))


def _entries(value: Any) -> list[Any]:
    return (value if isinstance(value, list) else [value]) if is_present(value) else []


def _file_path(text: str, location: str) -> str:
    """The path that a `file:` address means.

    Other addresses are refused, rather than glued to a folder.
    """
    if not _SCHEME.match(text) and not text.startswith("file:"):
        return text
    address = urlsplit(text)
    if address.scheme != "file":
        raise ValueError(
            f"{location} is an address; training reads files only. Download it, and write its path"
        )
    is_local = address.netloc in ("", "localhost") and address.path.startswith("/")
    if not is_local or address.query or address.fragment:
        raise ValueError(
            f"{location} is no address of a file on this machine; write file:///path, or the path"
        )
    return unquote(address.path)


def _encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # these bytes are decoded again at once
    return buffer.getvalue()
