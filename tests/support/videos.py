"""Short video files for tests, made with PyAV."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import av


def colour(index: int, frames: int) -> tuple[int, int, int]:
    """From blue to red, so that the colour of a frame tells its place."""
    red = 255 * index // max(frames - 1, 1)
    return red, 0, 255 - red


def write_video(
    path: Path,
    frames: int = 24,
    fps: int = 8,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    codec_options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    sound_seconds: float = 0.0,
    **options: str,
) -> Path:
    """`frames` frames of one colour each (the upper left quarter is white), `frames / fps` seconds
    long.

    `ticks`: when each is shown, in `1 / fps` s. `sound_seconds`: silence beside them, in packets of
        MP2.
    """
    encode = partial(
        _encode,
        path,
        frames,
        fps,
        size,
        codec,
        codec_options,
        pixel_format,
        ticks,
        sound_seconds,
        options,
    )
    # in a process that has done much else, its encoder may not open (EINVAL)
    if codec.startswith("libvpx"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            fresh.submit(encode).result()
    else:
        encode()
    return path


def _encode(
    path: Path,
    frames: int,
    fps: int,
    size: tuple[int, int],
    codec: str,
    codec_options: dict[str, str] | None,
    pixel_format: str,
    ticks: Sequence[int] | None,
    sound_seconds: float,
    options: dict[str, str],
) -> None:
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        sound = container.add_stream("mp2", rate=44100, layout="stereo") if sound_seconds else None
        stream.width, stream.height = size
        stream.options = codec_options or {}
        stream.pix_fmt, stream.bit_rate = pixel_format, 4_000_000
        for index in range(frames):
            picture = Image.new("RGB", size, colour(index, frames))
            picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index if ticks is None else ticks[index], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _add_silence(container, sound, sound_seconds)


def _add_silence(
    container: "av.container.OutputContainer", sound: "av.AudioStream", seconds: float
) -> None:
    import av
    import numpy as np

    for start in range(0, round(seconds * 44100), 1152):
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 2 * 1152), np.int16), format="s16", layout="stereo"
        )
        silence.sample_rate, silence.pts, silence.time_base = 44100, start, Fraction(1, 44100)
        container.mux(sound.encode(silence))
    container.mux(sound.encode())


def write_sound(path: Path) -> Path:
    """One second of silence and no picture."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path
