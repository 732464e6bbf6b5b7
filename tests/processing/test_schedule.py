"""Scales over frames, in words."""

import re

import numpy as np
import pytest
import torch

from m3.processing.frame_scales import frame_scales, split_alternatives


@pytest.mark.parametrize(
    ("schedule", "frames", "scales"),
    [
        (36, 3, [36, 36, 36]),
        ("36", 3, [36, 36, 36]),
        ("144+1", 4, [144, 1, 1, 1]),
        ("144+1", 1, [144]),
        ("144x2+36x2+1", 6, [144, 144, 36, 36, 1, 1]),
        ("144x2 + 9x2", 4, [144, 144, 9, 9]),
        ("144x2+9x2", 3, [144, 144, 9]),
        ([1, 4], 2, [1, 4]),
        (9, 0, []),
    ],
)
def test_a_schedule_gives_one_scale_per_frame(
    schedule: int | str | list[int], frames: int, scales: list[int]
) -> None:
    assert frame_scales(schedule, frames) == scales


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("144:1", "the scale '144:1' cannot be read: expected such as 36, 144+1 or 144x4+36x8+1"),
        ("", "cannot be read"),
        ("144+", "cannot be read"),
        ("144x2", "the scale '144x2' says 2 frames, but there are 5"),
        ([1, 4], "2 scales were given for 5 frames"),
    ],
)
def test_what_cannot_be_followed_is_refused(schedule: str | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        frame_scales(schedule, 5)


def test_alternatives_are_split_at_commas() -> None:
    assert split_alternatives("1, 9,144x2+1") == [1, 9, "144x2+1"]
    with pytest.raises(ValueError, match="the scale 'nine' cannot be read"):
        split_alternatives("1,nine")


@pytest.mark.parametrize("scale", [9, 9.0, np.int64(9), np.float32(9), torch.tensor(9)])
def test_numbers_of_any_library_are_numbers(scale: object) -> None:
    assert frame_scales(scale, 2) == [9, 9]


@pytest.mark.parametrize("scale", [9.5, True, float("nan"), float("inf")])
def test_what_is_no_number_of_tokens_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match="is no number of visual tokens: expected such as 36"):
        frame_scales(scale, 2)
