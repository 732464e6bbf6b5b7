"""Short video files for tests, made with PyAV."""

from pathlib import Path

from PIL import Image


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
    **options: str,
) -> Path:
    """`frames` frames of one colour each (the upper left quarter is white), `frames / fps` seconds long."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.options = codec_options or {}
        stream.pix_fmt, stream.bit_rate = pixel_format, 4_000_000
        for index in range(frames):
            picture = Image.new("RGB", size, colour(index, frames))
            picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """One second of silence and no picture."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path
