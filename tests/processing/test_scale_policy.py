"""Scale policies, in words and numbers."""

import re

import numpy as np
import pytest
import torch

from m3.nesting import Budget, read_budget, read_ladder
from m3.processing.scale_policy import Auto, Fixed, PerFrame, Rule, read_policy, split_alternatives


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
    assert [b.tokens for b in read_policy(schedule).budgets(frames)] == scales


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "144:1",
            "the scale '144:1' cannot be read: expected such as 36, 36@48 (tokens @ pixels), 144+1 or 144x4+36x8+1",
        ),
        ("", "cannot be read"),
        ("144+", "cannot be read"),
        ("144x2", "the scale '144x2' says 2 frames, but there are 5"),
        ([1, 4], "2 scales were given for 5 frames"),
    ],
)
def test_what_cannot_be_followed_is_refused(schedule: str | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_policy(schedule).budgets(5)


def test_alternatives_are_split_at_commas() -> None:
    assert split_alternatives("1, 9,144x2+1") == [1, 9, "144x2+1"]
    with pytest.raises(ValueError, match="the scale 'nine' cannot be read"):
        split_alternatives("1,nine")


@pytest.mark.parametrize("scale", [9, 9.0, np.int64(9), np.float32(9), torch.tensor(9)])
def test_numbers_of_any_library_are_numbers(scale: object) -> None:
    assert read_policy(scale).budgets(2) == [Budget(9), Budget(9)]


@pytest.mark.parametrize("scale", [9.5, True, float("nan"), float("inf")])
def test_what_is_no_number_of_tokens_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match="is no number of visual tokens: expected such as 36"):
        read_policy(scale).budgets(2)


@pytest.mark.parametrize(
    ("setting", "policy", "label"),
    [
        (36, Fixed(Budget(36)), "36"),
        (" 36 ", Fixed(Budget(36)), "36"),
        ("144+1", PerFrame(((Budget(144), 1), (Budget(1), None)), "144+1"), "144+1"),
        ("auto", Auto(), "auto"),
        ("auto: 0.95", Auto(0.95), "auto:0.95"),
    ],
)
def test_a_setting_is_read_as_a_policy(
    setting: int | str, policy: Fixed | PerFrame | Auto, label: str
) -> None:
    assert read_policy(setting) == policy
    assert policy.label == label


def test_a_model_without_a_router_does_not_choose() -> None:
    with pytest.raises(ValueError, match="'auto' is chosen by a model's router, .*docs/auto.md"):
        read_policy("auto").budgets(1)


@pytest.mark.parametrize("words", ["auto:2", "auto:1.01"])
def test_what_auto_keeps_is_a_share(words: str) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1, such as auto:0.95"):
        read_policy(words)


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        ((20, 24), "9@24"),
        ((25, 10), "36@48"),
        ((48, 48), "36@48"),
        ((96, 96), 144),
        ((4000, 10), 144),
    ],
)
def test_the_rule_takes_the_lowest_resolution_that_loses_no_pixel(
    size: tuple[int, int], chosen: int | str
) -> None:
    policy = read_policy("auto:rule")
    assert isinstance(policy, Rule)
    ladder = read_ladder(["1@24", "9@24", "9@48", "36@48", 1, 36, 144])
    assert policy.choose(size, ladder) == read_budget(chosen)


def test_the_rule_without_sizes_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="goes by the sizes of 2 images"):
        read_policy("auto:rule").budgets(2)
