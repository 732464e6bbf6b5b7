"""Front, knee and sufficient scale of curves drawn by hand."""

import math

import pytest
from scipy import stats

from m3.evaluation.analysis.frontier import (
    front_curve,
    has_resolutions,
    knee,
    pareto_front,
    sufficient,
)
from m3.evaluation.statistics import chance_corrected, holm, paired_p, retention


def test_front_keeps_what_nothing_beats():
    points = [(1.0, 50.0), (4.0, 45.0), (4.0, 60.0), (9.0, 60.0), (9.0, 70.0), (36.0, 69.0)]
    assert pareto_front(points) == [0, 2, 4]  # 3 costs more for the same; 5 costs more for less
    # a tie: neither beats the other
    assert pareto_front([(1.0, 5.0), (4.0, 5.0), (1.0, 5.0)]) == [0, 2]
    assert pareto_front([]) == []


def test_knee_is_where_the_curve_bends():
    # log tokens 0, 1/4, 1/2, 3/4, 1
    assert knee({1: 0.0, 4: 40.0, 16: 80.0, 64: 90.0, 256: 100.0}) == 16
    assert knee({1: 50.0, 16: 50.0, 256: 50.0}) is None
    assert knee({1: 0.0, 16: 10.0, 256: 100.0}) is None  # it only gets steeper
    assert knee({1: 0.0, 256: 1.0}) is None


def test_sufficient_scale():
    curve = {1: 50.0, 9: 94.0, 36: 96.0, 144: 100.0}
    assert sufficient(curve) == 36
    assert sufficient(curve, 0.9) == 9
    assert sufficient({1: 10.0, 9: 12.0, 36: 8.0}) == 1
    assert sufficient({1: 0.0, 9: 4.0, 36: 0.0}) is None  # of nothing there is no share
    with pytest.raises(ValueError, match="share to keep must be above 0 and at most 1, got 95.0"):
        sufficient(curve, 95.0)


def test_retention_by_hand():
    tasks = [([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], "abcd"), ([1.0, 1.0], [1.0, 1.0], "ab")]
    found = retention(tasks)
    assert found is not None
    assert found.value == pytest.approx(75.0)  # 50 and 100
    assert 50 <= found.low < 75 < found.high <= 100
    assert retention([([0.0], [0.0], "a")]) is None


def test_retention_knows_where_its_interval_ends():
    """Right at the largest scale on one image of three: many a draw leaves it out, and any share
    of nothing is without end.
    """
    found = retention([([0.0, 1.0, 1.0], [1.0, 0.0, 0.0], "abc")])
    assert found is not None and found.value == pytest.approx(200.0) and math.isinf(found.high)
    alone = retention([([1.0, 0.0], [1.0, 1.0], "aa")])
    assert (
        alone is not None
        and alone.value == 50.0
        and math.isnan(alone.low)
        and math.isnan(alone.high)
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_paired_p_is_the_paired_t_test():
    a, b = [1.0] * 20 + [0.0] * 70, [0.0] * 90  # mean 2/9, variance 14/81 * 90/89: t = 5.04
    assert paired_p(a, b, range(90)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert paired_p(b, b, range(90)) == 1.0
    assert paired_p(a, b, ["one"] * 90) == 1.0


def test_few_images_are_never_sure():
    """Three documents that all fell: a sign-flip test gives 2 of 8, where an error of zero would
    say 0.
    """
    assert paired_p([0.0] * 3, [1.0] * 3, "abc") == 0.25
    assert paired_p([0.0] * 6, [1.0] * 6, "abcdef") == 2 / 64
    assert paired_p([0.0] * 6, [1.0] * 6, "aaabbb") == 0.5


def test_chance_correction():
    assert [chance_corrected(score, 0.25) for score in (0.25, 1.0, 0.625)] == [0.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="got 1"):
        chance_corrected(0.5, 1.0)


def test_the_front_spans_tokens_and_resolutions():
    """Nine tokens of a small picture beat as many of a large one by cost, and four of it by score;
    of tokens alone the front would know nothing of that.
    """
    curve: dict[int | str, float] = {
        "1@24": 40.0, "9@24": 61.0, 4: 60.0, 9: 62.0, "36@48": 75.0, 36: 76.0, 144: 76.0
    }  # fmt: skip
    costs: dict[int | str, float] = {
        "1@24": 1.0, "9@24": 2.0, 4: 10.0, 9: 11.0, "36@48": 5.0, 36: 14.0, 144: 26.0
    }  # fmt: skip
    front = front_curve(curve, costs)
    assert list(front) == ["1@24", "9@24", "36@48", 36]  # cheapest first
    assert knee(front, costs) == "36@48"
    assert sufficient(curve, 0.95, costs) == "36@48"
    assert sufficient(curve, 0.8, costs) == "9@24"
    assert has_resolutions(list(curve)) and not has_resolutions([1, 9])
    assert not has_resolutions(["1@24", "9@24"])
