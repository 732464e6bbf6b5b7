"""The oracle on a table worked out by hand."""

import numpy as np
import pytest

from m3.evaluation.analysis.oracle import oracle, smallest_right, smallest_steady

SCALES = [1, 9, 36]
# sample:              right at        smallest  steady from
SCORES = np.array(
    [
        [1.0, 1.0, 1.0],  # all              1         1
        [0.0, 1.0, 1.0],  # 9, 36            9         9
        [1.0, 0.0, 1.0],  # 1, 36            1         36 (1 was luck)
        [0.0, 1.0, 0.0],  # 9                9         never
        [0.0, 0.0, 0.0],  # none             never     never
    ]
)
TOKENS = np.array([[1.0, 9.0, 36.0]] * 4 + [[2.0, 18.0, 72.0]])  # the last sample has two images


def test_by_hand():
    found = oracle(SCORES, TOKENS, SCALES, chance=0.25)
    assert found.score == pytest.approx(4 / 5)
    assert found.largest_score == pytest.approx(3 / 5)
    assert found.tokens == pytest.approx((1 + 9 + 1 + 9 + 72) / 5)  # never right: the largest scale
    # never right: the smallest
    assert found.tokens_as_published == pytest.approx((1 + 9 + 1 + 9 + 2) / 5)
    assert found.largest_tokens == pytest.approx((4 * 36 + 72) / 5)
    assert found.steady_tokens == pytest.approx((1 + 9 + 36 + 36 + 72) / 5)
    assert found.needs == {1: 2, 9: 2, 36: 0}
    assert (found.never, found.n) == (1, 5)
    floor = 1 - 0.75**3
    assert found.floor == pytest.approx(floor)
    assert found.corrected == pytest.approx((0.8 - floor) / (1 - floor))
    assert found.largest_corrected == pytest.approx((0.6 - 0.25) / 0.75)


def test_guesses_are_corrected_to_nothing():
    """Independent guesses at every scale: the oracle looks good, the corrected one does not."""
    rng = np.random.default_rng(0)
    scores = (rng.random((40_000, 5)) < 0.25).astype(float)
    found = oracle(scores, np.ones_like(scores), [1, 4, 9, 36, 144], chance=0.25)
    assert found.score > 0.7
    assert found.corrected == pytest.approx(0, abs=0.02)  # 40,000 samples know the score to 0.002


def test_partial_scores_take_the_smallest_scale_with_the_best():
    scores = np.array([[0.2, 0.7, 0.7], [0.5, 0.3, 0.9], [0.0, 0.0, 0.1]])
    assert smallest_right(scores).tolist() == [1, 2, 2]
    assert smallest_steady(scores).tolist() == [1, 2, 2]
    assert oracle(scores, np.ones_like(scores), SCALES).score == pytest.approx(
        (0.7 + 0.9 + 0.1) / 3
    )


def test_without_a_chance_level_nothing_is_corrected():
    found = oracle(SCORES, TOKENS, SCALES)
    assert (found.floor, found.corrected, found.largest_corrected) == (None, None, None)


def test_mistakes_are_named():
    with pytest.raises(
        ValueError,
        match=r"3 columns of scores for the scales \[9, 1, 36\], which "
        r"must ascend",
    ):
        oracle(SCORES, TOKENS, [9, 1, 36])
    with pytest.raises(ValueError, match="chance level must be at least 0 and below 1, got 1.0"):
        oracle(SCORES, TOKENS, SCALES, chance=1.0)
