"""Scale policies: the number of visual tokens that each image of a prompt is read at.

    36            `Fixed`: every image, and every frame of a video, at 36 tokens
    144+1         `PerFrame`: the first frame at 144, all others at 1
    144x4+36x8+1  four frames at 144, eight at 36, all others at 1
    auto          `Auto`: the model's router chooses per image; `auto:0.95` asks for that certainty

A step without a count is one frame, the last one without a count all that are left. A still image
is a video of one frame, so it is read at the first step. In Python a list with one number per frame
does as well.

Chat, server and sweep read a setting by `read_policy`; `ScaleArithmetic.policy_scales`
(m3/processing/token_counts.py) is the one place where it becomes a scale per image.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

STEP = re.compile(r"(\d+)(?:x(\d+))?")
AUTO = re.compile(r"auto(?::(\d*\.?\d+))?")
ScaleSetting = int | str | Sequence[int] | SupportsFloat
"""A setting as users write it: one number, the words above, or one number per frame."""


@dataclass(frozen=True)
class Fixed:
    """The same scale for every image."""

    scale: int

    @property
    def label(self) -> str:
        return str(self.scale)

    def scales(self, images: int) -> list[int]:
        """One scale per image."""
        return [self.scale] * images


@dataclass(frozen=True)
class PerFrame:
    """A scale for each frame of a video: `steps` of (scale, number of frames), the last number
    None for all that are left.
    """

    steps: tuple[tuple[int, int | None], ...]
    label: str

    def scales(self, images: int) -> list[int]:
        """One scale per image; steps beyond the last one are no error, since a short video is read
        as the beginning of a long one.

        Raises:
            ValueError: steps that end before the images do.
        """
        scales: list[int] = []
        for scale, count in self.steps:
            left_images = images - len(scales)
            scales += [scale] * (left_images if count is None else min(count, left_images))
        if len(scales) < images:
            raise ValueError(
                f"the scale {self.label!r} says {len(scales)} frames, but there are {images}: let "
                "the last step go without a count, then it goes on to the end"
            )
        return scales


@dataclass(frozen=True)
class PerImage:
    """Scales that were listed one by one."""

    listed: tuple[int, ...]

    @property
    def label(self) -> str:
        return ",".join(map(str, self.listed))

    def scales(self, images: int) -> list[int]:
        """The listed scales; a `ValueError` where there are more or fewer images."""
        if len(self.listed) != images:
            raise ValueError(
                f"{len(self.listed)} scales were given for {images} frames: give one per frame, or "
                "words such as 144+1"
            )
        return list(self.listed)


@dataclass(frozen=True)
class Auto:
    """The model's own choice; `certainty`, from 0 to 1, that the answer is that of all tokens."""

    certainty: float | None = None

    @property
    def label(self) -> str:
        return "auto" if self.certainty is None else f"auto:{self.certainty:g}"

    def scales(self, images: int) -> list[int]:
        """A `ValueError`: no model has a router yet."""
        raise ValueError(
            f"the scale {self.label!r} needs a model that chooses scales itself, and this model "
            "has no router: give a number of visual tokens, such as 36"
        )


ScalePolicy = Fixed | PerFrame | PerImage | Auto


def read_policy(setting: ScaleSetting) -> ScalePolicy:
    """The policy that a setting describes; a `ValueError` where it cannot be read."""
    if isinstance(setting, str):
        return _read_words(setting)
    if isinstance(setting, Sequence):
        return PerImage(tuple(setting))
    return Fixed(_whole_number(setting))


def _read_words(words: str) -> ScalePolicy:
    compact = words.replace(" ", "")
    automatic = AUTO.fullmatch(compact)
    if automatic is not None:
        certainty = None if automatic[1] is None else float(automatic[1])
        if certainty is not None and not 0 <= certainty <= 1:
            raise ValueError(
                f"the scale {words!r} asks for a certainty of {certainty:g}: expected 0 to 1, such "
                "as auto:0.95"
            )
        return Auto(certainty)
    matches = [STEP.fullmatch(step) for step in compact.split("+")]
    steps: list[tuple[int, int | None]] = []
    for position, match in enumerate(matches, 1):
        if match is None:
            raise ValueError(
                f"the scale {words!r} cannot be read: expected such as 36, 144+1 or 144x4+36x8+1 "
                "(scale x frames)"
            )
        rest = None if position == len(matches) else 1
        steps.append((int(match[1]), int(match[2]) if match[2] else rest))
    if len(steps) == 1 and steps[0][1] is None:
        return Fixed(steps[0][0])
    return PerFrame(tuple(steps), words)


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
    """`1,9,144+1` -> the settings to compare, numbers as numbers.

    A `ValueError` where one cannot be read.
    """
    settings = [word.strip() for word in text.split(",")]
    for setting in settings:
        read_policy(setting)
    return [int(setting) if setting.isdigit() else setting for setting in settings]
