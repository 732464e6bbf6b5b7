"""Turns what records say of images and videos into images: paths, encoded bytes, and the frames
of videos as PNG.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from m3.data.formats.content_keys import is_given
from m3.data.formats.fields import Fields, Unused, shown
from m3.processing.video import Sampling, load_video

FRAMES = 8
"""Frames of a video, where neither the record nor the source says how many."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")

ImageFile = str | bytes
"""The path of an image, or its encoded bytes."""


@dataclass(frozen=True)
class MediaReader:
    """Reads what one record says of its images and videos.

    `where`: file and record, for messages. `resolve`: the path that a record writes to the file, or
        to its bytes.
    `num_frames`: of videos whose record does not say it.
    """

    where: str
    unused: Unused
    resolve: Callable[[str], ImageFile]
    num_frames: int | None = None

    def images(self, value: Any) -> tuple[ImageFile, ...]:
        """Nothing, one image or a list."""
        entries = (value if isinstance(value, list) else [value]) if is_given(value) else []
        return tuple(self.image(entry) for entry in entries)

    def image(self, value: Any) -> ImageFile:
        """A path, a `data:` address, bytes, or `{bytes, path}` (the form of `datasets.Image`)."""
        file = self._file(value, "image")
        if file is None:
            raise ValueError(
                f"{self.where}: 'image' must be a path, encoded bytes, a list of these or absent, "
                f"got {shown(value)}"
            )
        return file

    def videos(self, value: Any) -> list[tuple[ImageFile, ...]]:
        """The frames of nothing, one video or a list."""
        entries = (value if isinstance(value, list) else [value]) if is_given(value) else []
        return [self.video(entry) for entry in entries]

    def video(self, value: Any) -> tuple[ImageFile, ...]:
        """Its frames as PNG; as many as are asked for, or all that differ where it is too short
        for that.
        """
        number = self.num_frames or FRAMES
        file: Any = value
        if isinstance(value, dict):
            fields = Fields(value, f"{self.where}, video", self.unused, "video")
            said = fields.take("num_frames")
            number = number if said is None else said
            file = {"bytes": fields.take("bytes"), "path": fields.take("path")}
            fields.close(strict=True)
        source = self._file(file, "video")
        if (
            source is None
            or type(number) is not int
            or (isinstance(source, str) and source.startswith("data:"))
        ):
            raise ValueError(
                f"{self.where}: 'video' must be a path, or an object with 'path' and 'num_frames', "
                f"got {shown(value)}"
            )
        try:
            pictures = load_video(source, Sampling(num_frames=number)).frames
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        return tuple(_png(picture) for picture in pictures)

    def _file(self, value: Any, kind: str) -> ImageFile | None:
        """None for what is no file."""
        if isinstance(value, dict):
            fields = Fields(value, f"{self.where}, {kind}", self.unused, kind)
            content, path = fields.take("bytes"), fields.take("path")
            fields.close(has_media=True)
            value = path if content is None else content
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            return None
        if value.startswith("data:"):
            return value
        return self.resolve(_path(value, f"{self.where}: {kind} {shown(value)}"))


def in_folder(folder: Path | None) -> Callable[[str], ImageFile]:
    """Resolves media in files, as `MediaReader.resolve`: paths relative to `folder`."""
    return lambda path: path if folder is None else str(folder / path)


def _path(text: str, where: str) -> str:
    """The path that a `file:` address means; other addresses are refused, rather than glued to a
    folder.
    """
    if not _SCHEME.match(text) and not text.startswith("file:"):
        return text
    address = urlsplit(text)
    if address.scheme != "file":
        raise ValueError(
            f"{where} is an address; training reads files only. Download it, and write its path"
        )
    if (
        address.netloc not in ("", "localhost")
        or not address.path.startswith("/")
        or address.query
        or address.fragment
    ):
        raise ValueError(
            f"{where} is no address of a file on this machine; write file:///path, or the path"
        )
    return unquote(address.path)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # these bytes are decoded again at once
    return buffer.getvalue()
