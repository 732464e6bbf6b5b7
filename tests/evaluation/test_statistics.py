"""Errors and differences against textbook values and simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from m3.evaluation.statistics import Mean, clustered_mean, mean_of_means, paired_bootstrap, read_baselines


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
    assert clustered_mean(scores * 3, range(15)).stderr < 0.7 * once.stderr  # what ignoring the images would claim


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
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)  # 400 draws know a spread to 3.5 %


def test_mean_of_means():
    mean = mean_of_means([Mean(50.0, 3.0, 10, 10), Mean(70.0, 4.0, 20, 5)])
    assert (mean.value, mean.stderr, mean.n) == (60.0, 2.5, 30)
    with pytest.raises(ValueError, match="no task"):
        mean_of_means([])


def test_paired_bootstrap_sees_a_small_steady_difference():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    found = paired_bootstrap((base + 0.02 + 0.01 * rng.random(200)).tolist(), base.tolist(), range(200))
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
    copies = paired_bootstrap(np.tile(a, 10).tolist(), np.tile(b, 10).tolist(), list(range(40)) * 10)
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.05)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="a: 2, b: 1, clusters: 2"):
        paired_bootstrap([1.0, 2.0], [1.0], [0, 1])
    with pytest.raises(ValueError, match="at least one"):
        clustered_mean([], [])


def test_baselines(tmp_path: Path):
    assert read_baselines(tmp_path / "none.json") == {}
    (tmp_path / "b.json").write_text(json.dumps({"scene": {"chance": 0.125, "majority": 0.2, "note": 1}}))
    assert read_baselines(tmp_path / "b.json") == {"scene": {"chance": 0.125, "majority": 0.2}}
