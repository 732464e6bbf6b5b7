"""Scale policies: the budget that each image of a prompt is seen and read at.

    36            `Fixed`: every image, and every frame of a video, at 36 tokens
    36@48         the same, seen at 48 pixels (m3/nesting/budget.py)
    144+1         `PerFrame`: the first frame at 144, all others at 1
    144x4+36x8+1  four frames at 144, eight at 36, all others at 1
    auto          `Auto`: the model's router chooses per image; `auto:0.95` keeps that share of the score
    auto:rule     `Rule`: by the size of each image alone, without a router

A step without a count is one frame, the last one without a count all that are left. A still image
is a video of one frame, so it is read at the first step. In Python a list with one number per frame
does as well.

Chat, server and sweep read a setting by `read_policy`; `ScaleArithmetic.policy_budgets`
(m3/processing/token_counts.py) is the one place where it becomes a budget per image.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from m3.nesting import Budget, read_budget, resolutions

STEP = re.compile(r"(\d+(?:@\d+)?)(?:x(\d+))?")
AUTO = re.compile(r"auto(?::(\d*\.?\d+))?")
ScaleSetting = int | str | Budget | Sequence[int | str | Budget] | SupportsFloat
"""A setting as users write it: one budget, the words above, or one budget per frame."""


@dataclass(frozen=True)
class Fixed:
    """The same budget for every image."""

    budget: Budget

    @property
    def label(self) -> str:
        return str(self.budget)

    def budgets(self, images: int) -> list[Budget]:
        """One budget per image."""
        return [self.budget] * images


@dataclass(frozen=True)
class PerFrame:
    """A budget for each frame of a video: `steps` of (budget, number of frames), the last number
    None for all that are left.
    """

    steps: tuple[tuple[Budget, int | None], ...]
    label: str

    def budgets(self, images: int) -> list[Budget]:
        """One budget per image; steps beyond the last one are no error, since a short video is read
        as the beginning of a long one.

        Raises:
            ValueError: steps that end before the images do.
        """
        budgets: list[Budget] = []
        for budget, count in self.steps:
            left_images = images - len(budgets)
            budgets += [budget] * (left_images if count is None else min(count, left_images))
        if len(budgets) < images:
            raise ValueError(
                f"the scale {self.label!r} says {len(budgets)} frames, but there are {images}: let "
                "the last step go without a count, then it goes on to the end"
            )
        return budgets


@dataclass(frozen=True)
class PerImage:
    """Budgets that were listed one by one."""

    listed: tuple[Budget, ...]

    @property
    def label(self) -> str:
        return ",".join(map(str, self.listed))

    def budgets(self, images: int) -> list[Budget]:
        """The listed budgets; a `ValueError` where there are more or fewer images."""
        if len(self.listed) != images:
            raise ValueError(
                f"{len(self.listed)} scales were given for {images} frames: give one per frame, or "
                "words such as 144+1"
            )
        return list(self.listed)


@dataclass(frozen=True)
class Auto:
    """The model's own choice; `keep`: share of the largest budget's score to keep, None for the
    default of m3/model/budgets/choice.py.
    """

    keep: float | None = None

    @property
    def label(self) -> str:
        return "auto" if self.keep is None else f"auto:{self.keep:g}"

    def budgets(self, images: int) -> list[Budget]:
        """A `ValueError`: the router is asked where the question is known, by a conversation
        (m3/inference/budget_choice.py).
        """
        raise ValueError(
            f"the scale {self.label!r} is chosen by a model's router, which needs a question; here "
            "give a number of visual tokens such as 36 (docs/auto.md)"
        )


@dataclass(frozen=True)
class Rule:
    """A choice that needs no training: the lowest trained resolution at which an image loses no pixel,
    and of the budgets at it the one of most tokens.
    """

    label: str = "auto:rule"

    def choose(self, size: tuple[int, int], ladder: Sequence[Budget]) -> Budget:
        """The budget of an image of (height, width) in pixels. One that is larger than every named
        resolution is seen at the largest.
        """
        sides = [side for side in resolutions(ladder) if side is None or side >= max(size)]
        side = sides[0] if sides else resolutions(ladder)[-1]
        return max(budget for budget in ladder if budget.resolution == side)

    def budgets(self, images: int) -> list[Budget]:
        """A `ValueError`: without the sizes of the images there is nothing to choose by."""
        raise ValueError(
            f"the scale {self.label!r} goes by the sizes of {images} images, which are not known here: "
            "give a number of visual tokens such as 36"
        )


ScalePolicy = Fixed | PerFrame | PerImage | Auto | Rule


def read_policy(setting: ScaleSetting) -> ScalePolicy:
    """The policy that a setting describes; a `ValueError` where it cannot be read."""
    if isinstance(setting, str):
        return _read_words(setting)
    if isinstance(setting, Budget):
        return Fixed(setting)
    if isinstance(setting, Sequence):
        listed = [
            read_budget(item) if isinstance(item, str | Budget) else Budget(_whole_number(item))
            for item in setting
        ]
        return PerImage(tuple(listed))
    return Fixed(Budget(_whole_number(setting)))


def _read_words(words: str) -> ScalePolicy:
    compact = words.replace(" ", "")
    if compact == Rule.label:
        return Rule()
    automatic = AUTO.fullmatch(compact)
    if automatic is not None:
        keep = None if automatic[1] is None else float(automatic[1])
        if keep is not None and not 0 <= keep <= 1:
            raise ValueError(
                f"the scale {words!r} asks to keep {keep:g} of the score: expected 0 to 1, such "
                "as auto:0.95"
            )
        return Auto(keep)
    matches = [STEP.fullmatch(step) for step in compact.split("+")]
    steps: list[tuple[Budget, int | None]] = []
    for position, match in enumerate(matches, 1):
        if match is None:
            raise ValueError(
                f"the scale {words!r} cannot be read: expected such as 36, 36@48 (tokens @ pixels), "
                "144+1 or 144x4+36x8+1 (scale x frames)"
            )
        rest = None if position == len(matches) else 1
        steps.append((read_budget(match[1]), int(match[2]) if match[2] else rest))
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


def read_setting(words: str) -> int | str:
    """A setting as tables write it: a budget in its own form (36, "36@48"), other words as they are.

    A `ValueError` where it cannot be read.
    """
    policy = read_policy(words)
    return policy.budget.setting if isinstance(policy, Fixed) else policy.label


def is_budget(setting: int | str) -> bool:
    """Tell whether a setting is one budget for every image, not a choice among budgets."""
    return isinstance(read_policy(setting), Fixed)


def split_alternatives(text: str) -> list[int | str]:
    """`1,9,144+1` -> the settings to compare, numbers as numbers.

    A `ValueError` where one cannot be read.
    """
    settings = [word.strip() for word in text.split(",")]
    for setting in settings:
        read_policy(setting)
    return [int(setting) if setting.isdigit() else setting for setting in settings]
