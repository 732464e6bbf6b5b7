"""How sure a score is: clustered standard errors, paired differences, and the rows a score must beat.

In: scores per document and the image each document shows. Out: mean, standard error, difference with its interval.
"""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

DRAWS = 2_000
"""Bootstrap resamples: the ends of a 95 % interval are then known to about 4 % of its width."""


@dataclass(frozen=True)
class Mean:
    value: float
    stderr: float  # nan with fewer than two clusters
    n: int  # documents
    clusters: int  # distinct images


@dataclass(frozen=True)
class Difference:
    """Mean of (a - b) over the same documents, with a bootstrap interval."""

    value: float
    low: float  # nan, as high, where there is one image alone
    high: float
    p: float  # two-sided: how often resampling puts the difference on the other side of zero, times two
    n: int = 0  # documents compared


def clustered_mean(scores: Sequence[float], clusters: Sequence[Hashable]) -> Mean:
    """Mean and its cluster-robust standard error: questions about one image are not independent.

    With r_c the sum over cluster c of (score - mean) and C clusters, the error is sqrt(C / (C - 1) * sum_c r_c^2) / n
    (Miller, "Adding error bars to evals", https://arxiv.org/abs/2411.00640, equation 4, with the usual small-sample
    factor). With one document per image it is the plain standard error of the mean.
    """
    _check_lengths(scores=len(scores), clusters=len(clusters))
    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    sums, _ = _cluster_sums(values - mean, clusters)
    count = len(sums)
    stderr = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values) if count > 1 else math.nan
    return Mean(mean, stderr, len(values), count)


def mean_of_means(means: Sequence[Mean]) -> Mean:
    """Unweighted mean over tasks, taken as independent: stderr = sqrt(sum of squares) / number of tasks."""
    if not means:
        raise ValueError("no task to average over")
    stderr = math.sqrt(sum(mean.stderr**2 for mean in means)) / len(means)
    value = sum(mean.value for mean in means) / len(means)
    return Mean(value, stderr, sum(mean.n for mean in means), sum(mean.clusters for mean in means))


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable],
    iterations: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two means over the same documents; images are drawn with replacement, with all their documents.

    `a[i]`, `b[i]` and `clusters[i]` belong to one document. Percentile interval; p is at least 2 / (iterations + 1), and
    `least_p`. One image alone has no interval.
    """
    _check_lengths(a=len(a), b=len(b), clusters=len(clusters))
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, sizes = _cluster_sums(differences, clusters)
    rng = np.random.default_rng(seed)
    drawn = np.empty(iterations)
    for start in range(0, iterations, 500):
        rows = min(500, iterations - start)
        counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=rows)
        drawn[start : start + rows] = (counts @ sums) / (counts @ sizes)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(sums) > 1 else (math.nan,) * 2
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = max(min(1.0, 2 * (tail + 1) / (iterations + 1)), least_p(len(sums)))
    return Difference(float(differences.mean()), float(low), float(high), float(p), len(differences))


def least_p(clusters: int) -> float:
    """The smallest two-sided p that so many images can give, whatever they say: that of a sign-flip test, 2 / 2^C.

    Resampling and the normal distribution know no such end: of three images that agree they would be sure beyond measure.
    """
    return 2.0 ** (1 - clusters)


def paired_p(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Two-sided p of a difference of two means by its clustered standard error and the normal distribution.

    Unlike the bootstrap's it does not end at the number of draws, so it can be corrected for any number of tests; it ends at
    `least_p`. 1 where the error cannot be known (one image).
    """
    mean = clustered_mean([x - y for x, y in zip(a, b, strict=True)], clusters)
    if math.isnan(mean.stderr) or mean.value == 0:
        return 1.0
    normal = math.erfc(abs(mean.value) / mean.stderr / math.sqrt(2)) if mean.stderr > 0 else 0.0
    return max(normal, least_p(mean.clusters))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be compared with the level as if there were one test (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def chance_corrected(score: float, chance: float) -> float:
    """Share of the way from guessing to perfect: 0 at the chance level, 1 at 1, negative below chance."""
    if not 0 <= chance < 1:
        raise ValueError(f"the chance level must be at least 0 and below 1, got {chance}")
    return (score - chance) / (1 - chance)


@dataclass(frozen=True)
class Interval:
    value: float
    low: float  # nan, as high, where a task has one image alone
    high: float  # inf where a draw of the images may leave nothing to divide by


def retention(
    tasks: Sequence[tuple[Sequence[float], Sequence[float], Sequence[Hashable]]], draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Mean over tasks of (score / score of the largest scale), in per cent, with a 95 % bootstrap interval by image.

    `tasks`: per task the scores of each document at the scale and at the largest scale, and its image. Where documents of
    several tasks show the same image, they are drawn apart. None where a task has a score of 0 at the largest scale.
    """
    if any(sum(largest) <= 0 for _, largest, _ in tasks):
        return None
    rng = np.random.default_rng(seed)
    value, drawn = 0.0, np.zeros(draws)
    for scores, largest, clusters in tasks:
        _check_lengths(scores=len(scores), largest=len(largest), clusters=len(clusters))
        mine, _ = _cluster_sums(np.asarray(scores, dtype=np.float64), clusters)
        whole, _ = _cluster_sums(np.asarray(largest, dtype=np.float64), clusters)
        counts = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=draws)
        value += mine.sum() / whole.sum() / len(tasks)
        kept, all_of_it = counts @ mine, counts @ whole
        ratio = np.where(kept > 0, np.inf, 1.0)  # of nothing, nothing is lost; something is more than any share of it
        drawn += np.divide(kept, all_of_it, out=ratio, where=all_of_it > 0) / len(tasks)
        if len(mine) == 1:
            drawn[:] = np.nan
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")  # between a number and inf there is nothing
    return Interval(100 * float(value), 100 * float(low), 100 * float(high))


def read_baselines(path: Path) -> dict[str, dict[str, float]]:
    """Task -> {"chance": .., "majority": ..} of a suite that ships them; empty where `path` does not exist."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {task: {name: float(row[name]) for name in ("chance", "majority")} for task, row in rows.items()}


def _cluster_sums(
    values: Float[np.ndarray, " n"], clusters: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Sum and number of the values of each cluster, in order of first appearance."""
    index: dict[Hashable, int] = {}
    positions = [index.setdefault(cluster, len(index)) for cluster in clusters]
    return np.bincount(positions, weights=values), np.bincount(positions).astype(np.float64)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"expected the same number of values, at least one, for each document; got {shown}")
