"""The frames of a video that a benchmark shows, as a command line says them; read without torch."""

from m3.processing.video_frames import Sampling

FRAMES = "8"
"""Frames of a video, each an image at the scale, unless the user says otherwise."""


def sampling_of(frames: str | int) -> Sampling:
    """Frame sampling that `frames` asks for: a number, or `collage`: six of them as one image, as
    M3 evaluates videos (IG-VLM).
    """
    if str(frames) == "collage":
        return Sampling(collage=True)
    if not str(frames).isdigit():
        raise ValueError(
            f"frames of a video are a number, or collage (six of them as one image), got {frames!r}"
        )
    return Sampling(num_frames=int(frames))
