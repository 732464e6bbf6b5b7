"""Scales of the frames of a video, written as a word.

    36            every frame at 36 tokens
    144+1         the first frame at 144, all others at 1
    144x4+36x8+1  four frames at 144, eight at 36, all others at 1

A step without a count is one frame, the last one without a count all that are left. A still image
is a video of one frame, so it is read at the first step. In Python a list with one number per frame
does as well.
"""

import math
import re
from collections.abc import Sequence
from typing import SupportsFloat

STEP = re.compile(r"(\d+)(?:x(\d+))?")
Schedule = int | str | Sequence[int]
"""One number, the words above, or one number per frame."""


def frame_scales(schedule: Schedule | SupportsFloat, frames: int) -> list[int]:
    """One scale per frame.

    Raises:
        ValueError: words that cannot be read, or a schedule that ends before the frames do. Steps
            beyond the last frame are no error: a short video is read as the beginning of a long
            one.
    """
    if not isinstance(schedule, str | Sequence):
        return [_whole_number(schedule)] * frames
    if not isinstance(schedule, str):
        if len(schedule) != frames:
            raise ValueError(
                f"{len(schedule)} scales were given for {frames} frames: give one per frame, or "
                "words such as 144+1"
            )
        return list(schedule)
    steps = [STEP.fullmatch(step) for step in schedule.replace(" ", "").split("+")]
    scales: list[int] = []
    for position, step in enumerate(steps):
        if step is None:
            raise ValueError(
                f"the scale {schedule!r} cannot be read: expected such as 36, 144+1 or "
                "144x4+36x8+1 (scale x frames)"
            )
        scale, count = int(step[1]), step[2]
        rest = max(frames - len(scales), 0)
        scales += [scale] * (
            min(int(count), rest) if count else rest if position == len(steps) - 1 else 1
        )
    if len(scales) < frames:
        raise ValueError(
            f"the scale {schedule!r} says {len(scales)} frames, but there are {frames}: let the "
            "last step go without a count, "
            "then it goes on to the end"
        )
    return scales[:frames]


def _whole_number(scale: object) -> int:
    """One scale for all frames; numbers of numpy and torch are as good as Python's, and 9.0 is
    9.
    """
    number = (
        float(scale)
        if isinstance(scale, SupportsFloat) and not isinstance(scale, bool)
        else math.nan
    )
    if not number.is_integer():
        raise ValueError(
            f"the scale {scale!r} is no number of visual tokens: expected such as 36, 144+1 or "
            "144x4+36x8+1"
        )
    return int(number)


def split_alternatives(text: str) -> list[int | str]:
    """`1,9,144+1` -> the schedules to compare, numbers as numbers.

    A `ValueError` where one cannot be read.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        frame_scales(word, 0)
    return [int(word) if word.isdigit() else word for word in words]
