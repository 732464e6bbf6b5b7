"""A video file to a few upright RGB pictures, each with its time (m3/processing/video_frames.py
says which).

In: a path or the bytes of a file, and how to sample. Out: `Video`. PyAV (the extra `video`)
decodes, in a process of its own: a damaged file that ends the decoder, or never ends itself, is an
error of that file and of nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from m3.optional import require
from m3.processing.images import MAX_PIXELS
from m3.processing.video_frames import COLLAGE, CONTAINERS, MAX_FRAMES, Sampling, Video, VideoLimits
from m3.processing.video_process import VIDEO_PROCESSES, VideoProcessError

__all__ = ["CONTAINERS", "MAX_FRAMES", "Sampling", "Video", "VideoSource", "collage", "load_video"]

VideoSource = str | Path | bytes
EVENLY = Sampling()
MAX_SECONDS = 4 * 3600.0
MAX_DECODE_SECONDS = 900.0
"""Longest that decoding may take; the server allows less."""


def load_video(
    source: VideoSource,
    sampling: Sampling = EVENLY,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
    max_frames: int = MAX_FRAMES,
    max_pixels_in_all: int | None = None,
    decode_seconds: float = MAX_DECODE_SECONDS,
) -> Video:
    """Decode the frames that `sampling` asks for.

    `max_pixels` is of one frame, `max_pixels_in_all` of all that are read.

    Raises:
        ValueError: no such file, an empty one, no video in it, damaged data, or a limit is passed;
            the text says which.
        ModuleNotFoundError: PyAV is not installed; the text says what to install.
    """
    require("av")
    name = f"video of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
    _check_file(source, name)
    limits = VideoLimits(max_pixels, max_seconds, max_frames, max_pixels_in_all)
    path = None if isinstance(source, bytes) else str(Path(source).resolve())
    request = {"name": name, "path": path, "sampling": asdict(sampling), "limits": asdict(limits)}
    content = source if isinstance(source, bytes) else b""
    try:
        answer, pixels = VIDEO_PROCESSES.decode(request, content, decode_seconds)
    except VideoProcessError as error:
        raise ValueError(
            f"{name}: {error}. Copy or download it again, or convert it (ffmpeg -i IN OUT.mp4)"
        ) from error
    if "error" in answer:
        raise ValueError(answer["error"])
    sizes = [tuple(size) for size in answer["sizes"]]
    pictures = tuple(
        Image.frombytes("RGB", size, rgb) for size, rgb in zip(sizes, pixels, strict=True)
    )
    if sampling.collage:
        pictures = (collage(pictures),)
    return Video(pictures, tuple(answer["times"]), answer["seconds"])


def _check_file(source: VideoSource, name: str) -> None:
    """Before anything is decoded; only local files are."""
    if isinstance(source, bytes):
        if not source:
            raise ValueError(
                f"{name}: the video file is empty (0 bytes). Copy or download it again"
            )
        return
    if name.startswith(("http://", "https://")):
        raise ValueError(
            f"{name}: network addresses are not fetched: download the video and pass "
            "its path or bytes"
        )
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{name}: is a folder, expected a video file")
    if not path.is_file():
        raise ValueError(f"{name}: no such video file (looked from {Path.cwd()})")
    if path.stat().st_size == 0:
        raise ValueError(f"{name}: the video file is empty (0 bytes). Copy or download it again")


def collage(
    pictures: Sequence[Image.Image], rows: int = COLLAGE[0], columns: int = COLLAGE[1]
) -> Image.Image:
    """The pictures side by side in reading order, all as large as the first; what is left over
    is black.
    """
    width, height = pictures[0].size
    if len(pictures) > rows * columns:
        raise ValueError(f"{len(pictures)} pictures do not fit into {rows} x {columns}")
    grid = Image.new("RGB", (columns * width, rows * height))
    for place, picture in enumerate(pictures):
        grid.paste(
            picture.resize((width, height)), (place % columns * width, place // columns * height)
        )
    return grid
