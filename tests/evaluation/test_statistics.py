"""Errors and differences against textbook values and simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from m3.evaluation.statistics import (
    Mean,
    TaskPairs,
    clustered_mean,
    mean_difference,
    mean_of_means,
    paired_bootstrap,
    paired_p,
    read_baselines,
)


def test_one_document_per_image_is_the_plain_standard_error():
    scores = [1.0, 0.0, 1.0, 1.0, 0.0]
    mean = clustered_mean(scores, range(5))
    assert mean.value == pytest.approx(0.6)
    assert mean.stderr == pytest.approx(np.std(scores, ddof=1) / math.sqrt(5))


def test_copies_of_a_document_add_no_certainty():
    scores = [1.0, 0.0, 1.0, 1.0, 0.0]
    once = clustered_mean(scores, range(5))
    thrice = clustered_mean(scores * 3, list(range(5)) * 3)
    assert thrice.stderr == pytest.approx(once.stderr)
    assert (thrice.n, thrice.clusters) == (15, 5)
    # what ignoring the images would claim
    assert clustered_mean(scores * 3, range(15)).stderr < 0.7 * once.stderr


def test_one_image_has_no_error():
    assert math.isnan(clustered_mean([1.0, 0.0], ["a", "a"]).stderr)


def test_stderr_is_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 3)
    means, errors = [], []
    for _ in range(400):
        shared = rng.random(60).repeat(3)
        found = clustered_mean((rng.random(180) < shared).astype(float).tolist(), clusters.tolist())
        means.append(found.value)
        errors.append(found.stderr)
    # 400 draws know a spread to 3.5 %
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)


def test_mean_of_means():
    mean = mean_of_means([Mean(50.0, 3.0, 10, 10), Mean(70.0, 4.0, 20, 5)])
    assert (mean.value, mean.stderr, mean.n) == (60.0, 2.5, 30)
    with pytest.raises(ValueError, match="no task"):
        mean_of_means([])


def test_paired_bootstrap_sees_a_small_steady_difference():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    found = paired_bootstrap(
        (base + 0.02 + 0.01 * rng.random(200)).tolist(), base.tolist(), range(200)
    )
    assert found.value == pytest.approx(0.025, abs=0.002)
    assert 0.02 < found.low < found.value < found.high < 0.03
    assert found.p < 0.001


def test_paired_bootstrap_of_noise_and_of_nothing():
    rng = np.random.default_rng(2)
    noise = paired_bootstrap(rng.random(100).tolist(), rng.random(100).tolist(), range(100))
    assert noise.low < 0 < noise.high
    assert noise.p > 0.05
    same = paired_bootstrap([1.0, 0.0], [1.0, 0.0], ["a", "b"])
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_one_image_has_no_interval_and_few_are_never_sure():
    alone = paired_bootstrap([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "aaa")
    assert (alone.value, alone.p) == (1.0, 1.0) and math.isnan(alone.low) and math.isnan(alone.high)
    three = paired_bootstrap([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], "abc")
    assert (three.low, three.p) == (1.0, 0.25)


def test_paired_bootstrap_draws_whole_images():
    """Ten copies of each document leave the interval as wide as it was."""
    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    once = paired_bootstrap(a.tolist(), b.tolist(), range(40))
    copies = paired_bootstrap(
        np.tile(a, 10).tolist(), np.tile(b, 10).tolist(), list(range(40)) * 10
    )
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.05)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="a: 2, b: 1, clusters: 2"):
        paired_bootstrap([1.0, 2.0], [1.0], [0, 1])
    with pytest.raises(ValueError, match="at least one"):
        clustered_mean([], [])


def test_baselines(tmp_path: Path):
    assert read_baselines(tmp_path / "none.json") == {}
    (tmp_path / "b.json").write_text(
        json.dumps({"scene": {"chance": 0.125, "majority": 0.2, "note": 1}})
    )
    assert read_baselines(tmp_path / "b.json") == {"scene": {"chance": 0.125, "majority": 0.2}}


def of_task(number: int, mean: float, spread: float) -> TaskPairs:
    """Differences of exactly this mean and standard deviation."""
    drawn = np.random.default_rng(number).normal(size=number)
    values = mean + spread * (drawn - drawn.mean()) / drawn.std(ddof=1)
    return TaskPairs(values.tolist(), [0.0] * number, range(number))


def stratified_half_width(tasks: list[TaskPairs]) -> float:
    """By brute force: every task's documents drawn with replacement, apart."""
    rng = np.random.default_rng(7)
    values = [np.asarray(task.a) for task in tasks]
    means = [np.mean([rng.choice(of, len(of)).mean() for of in values]) for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(high - low) / 2


@pytest.mark.parametrize(("sizes", "means", "spreads", "expected"), [
    ((200, 200), (-30.0, 20.0), (27.3, 27.3), 2.68),
    ((20, 1000), (-20.0, 0.0), (6.05, 10.0), 1.33),
])  # fmt: skip
def test_the_interval_of_a_mean_over_tasks_is_drawn_within_them(sizes, means, spreads, expected):
    """What the tasks differ by is no uncertainty of their mean; pooled, half the widths were
    3.63 and 4.45.
    """
    tasks = [of_task(*one) for one in zip(sizes, means, spreads, strict=True)]
    assert stratified_half_width(tasks) == pytest.approx(expected, rel=0.06)
    found = mean_difference(tasks)
    assert found.value == pytest.approx(np.mean(means))
    error = (
        math.sqrt(sum(spread**2 / size for spread, size in zip(spreads, sizes, strict=True))) / 2
    )
    parts = [spread**2 / size for spread, size in zip(spreads, sizes, strict=True)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True)
    )
    assert (found.high - found.low) / 2 == pytest.approx(
        stats.t.ppf(0.975, freedom) * error, rel=0.06
    )
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, freedom), rel=1e-6)
    apart = mean_difference(
        [of_task(size, 0.0, spread) for size, spread in zip(sizes, spreads, strict=True)]
    )
    assert found.high - found.low == pytest.approx(apart.high - apart.low)


def test_a_task_of_one_image_leaves_the_mean_without_an_interval():
    found = mean_difference([of_task(20, 1.0, 1.0), TaskPairs([1.0, 0.0], [0.0, 0.0], "aa")])
    assert (
        found.value == pytest.approx(0.75)
        and math.isnan(found.low)
        and math.isnan(found.high)
        and found.p == 1.0
    )


def test_one_task_has_the_p_and_the_interval_of_the_paired_t_test():
    rng = np.random.default_rng(4)
    a, b = rng.random(12), rng.random(12)
    expected = stats.ttest_rel(a, b)
    found = paired_bootstrap(a.tolist(), b.tolist(), range(12), iterations=20_000)
    assert found.p == pytest.approx(expected.pvalue) == paired_p(a.tolist(), b.tolist(), range(12))
    interval = expected.confidence_interval()
    assert found.high - found.low == pytest.approx(interval.high - interval.low, rel=0.06)


def test_few_images_reject_what_is_not_there_as_seldom_as_they_say():
    """Ten images of four questions without a difference: 5 % are below 0.05; 2,000 draws know
    that to 0.5 points, three times.
    """
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(10), 4).tolist()
    p, outside, zero = [], 0, [0.0] * 40
    for draw in range(2000):
        values = (rng.normal(size=10).repeat(4) + rng.normal(size=40)).tolist()
        p.append(paired_p(values, zero, clusters))
        if draw < 500:
            found = paired_bootstrap(values, zero, clusters, iterations=500)
            outside += found.low > 0 or found.high < 0
    assert np.mean(np.asarray(p) < 0.05) == pytest.approx(0.05, abs=0.015)
    assert outside / 500 == pytest.approx(0.05, abs=0.03)
