"""Uncertainty of scores: clustered standard errors, paired differences, and the rows a score must
beat.

In: scores per document and the image each document shows. Out: mean, standard error, difference
    with its interval.
"""

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student

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
    low: float  # nan, as high, where a task has one image alone
    high: float
    p: float  # two-sided (`paired_p`)
    n: int = 0  # documents compared


def clustered_mean(scores: Sequence[float], clusters: Sequence[Hashable]) -> Mean:
    """Mean and its cluster-robust standard error: questions about one image are not independent.

    With r_c the sum over cluster c of (score - mean) and C clusters, the error is sqrt(C / (C - 1)
    * sum_c r_c^2) / n (Miller, "Adding error bars to evals", https://arxiv.org/abs/2411.00640,
    equation 4, with the usual small-sample factor). With one document per image it is the plain
    standard error of the mean.
    """
    _check_lengths(scores=len(scores), clusters=len(clusters))
    score_values = np.asarray(scores, dtype=np.float64)
    mean_score = float(score_values.mean())
    sums, _ = _cluster_sums(score_values - mean_score, clusters)
    cluster_count = len(sums)
    stderr = (
        math.sqrt(cluster_count / (cluster_count - 1) * float((sums**2).sum())) / len(score_values)
        if cluster_count > 1
        else math.nan
    )
    return Mean(mean_score, stderr, len(score_values), cluster_count)


def mean_of_means(means: Sequence[Mean]) -> Mean:
    """Unweighted mean over tasks, taken as independent: stderr = sqrt(sum of squares) / number
    of tasks.
    """
    if not means:
        raise ValueError("no task to average over")
    stderr = math.sqrt(sum(task_mean.stderr**2 for task_mean in means)) / len(means)
    mean_value = sum(task_mean.value for task_mean in means) / len(means)
    return Mean(
        mean_value,
        stderr,
        sum(task_mean.n for task_mean in means),
        sum(task_mean.clusters for task_mean in means),
    )


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable],
    iterations: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two means over the same documents; images are drawn with replacement, with all
    their documents.

    `a[i]`, `b[i]` and `clusters[i]` belong to one document. One image alone has no interval.
    """
    _check_lengths(a=len(a), b=len(b), clusters=len(clusters))
    return mean_difference([TaskPairs(a, b, clusters)], iterations, seed, confidence)


@dataclass(frozen=True)
class TaskPairs:
    """Scores of one task's documents on both sides, and the image that each document shows."""

    a: Sequence[float]
    b: Sequence[float]
    clusters: Sequence[Hashable]

    def differences(self) -> Float[np.ndarray, " n"]:
        _check_lengths(a=len(self.a), b=len(self.b), clusters=len(self.clusters))
        return np.asarray(self.a, dtype=np.float64) - np.asarray(self.b, dtype=np.float64)

    def mean(self) -> Mean:
        return clustered_mean(self.differences().tolist(), self.clusters)


def mean_difference(
    tasks: Sequence[TaskPairs], iterations: int = DRAWS, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Difference of two unweighted means over the same tasks, with an interval drawn within each
    task.

    The tasks are fixed: another draw of the images is another experiment, another choice of tasks
    is another question. Images are drawn apart in each task. The percentile interval is widened
    about the difference for few images, as t exceeds the normal distribution and sqrt(C / (C - 1))
    exceeds 1 (Hesterberg 2015, https://doi.org/10.1080/00031305.2015.1089789).
    """
    task_means = [task.mean() for task in tasks]
    mean_value = mean_of_means(task_means).value
    rng = np.random.default_rng(seed)
    deviation = np.zeros(iterations)
    for task, task_mean in zip(tasks, task_means, strict=True):
        sums, cluster_sizes = _cluster_sums(task.differences(), task.clusters)
        correction = math.sqrt(len(sums) / (len(sums) - 1)) if len(sums) > 1 else math.nan
        for draw_start in range(0, iterations, 500):
            draw_count = min(500, iterations - draw_start)
            draw_counts = rng.multinomial(
                len(sums), np.full(len(sums), 1 / len(sums)), size=draw_count
            )
            drawn = (draw_counts @ sums) / (draw_counts @ cluster_sizes) - task_mean.value
            deviation[draw_start : draw_start + draw_count] += correction * drawn / len(tasks)
    ends = (1 - confidence) / 2, (1 + confidence) / 2
    freedom = degrees_of_freedom(task_means)
    widening = (
        float(student.ppf(ends[1], freedom)) / float(norm.ppf(ends[1])) if freedom > 0 else 1.0
    )
    low_end, high_end = (
        mean_value + widening * float(np.quantile(deviation, interval_end)) for interval_end in ends
    )
    return Difference(
        mean_value,
        low_end,
        high_end,
        difference_p(task_means),
        sum(task_mean.n for task_mean in task_means),
    )


def degrees_of_freedom(means: Sequence[Mean]) -> float:
    """Degrees of freedom of a mean over tasks: C - 1 for one task, else Satterthwaite's; 0 where no
    error is known.

    With v the squared error of each task's mean, (sum v)^2 / sum(v^2 / (C - 1)) (Satterthwaite
    1946).
    """
    variances = [task_mean.stderr**2 for task_mean in means]
    largest_variance = max(variances)
    if any(math.isnan(variance) for variance in variances) or largest_variance == 0:
        return 0.0
    shares = [
        variance / largest_variance for variance in variances
    ]  # errors of 1e-160 have squares too
    return sum(shares) ** 2 / sum(
        share**2 / (task_mean.clusters - 1)
        for share, task_mean in zip(shares, means, strict=True)
        if share
    )


def difference_p(means: Sequence[Mean]) -> float:
    """Two-sided p of an unweighted mean over tasks of differences: Student's t of its clustered
    error; see `paired_p`.
    """
    overall_mean = mean_of_means(means)
    if math.isnan(overall_mean.stderr) or overall_mean.value == 0:
        return 1.0
    if overall_mean.stderr == 0:
        return least_p(overall_mean.clusters)
    freedom = degrees_of_freedom(means)
    p = (
        2 * float(student.sf(abs(overall_mean.value) / overall_mean.stderr, freedom))
        if freedom > 0
        else 0.0
    )
    return max(p, least_p(overall_mean.clusters))


def least_p(clusters: int) -> float:
    """The smallest two-sided p that so many images can give, whatever they say: that of a sign-flip
    test, 2 / 2^C.

    Resampling and Student's t know no such end: of three images that agree they would be sure
    beyond measure.
    """
    return 2.0 ** (1 - clusters)


def paired_p(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Two-sided p of a difference of two means by its clustered standard error and Student's t of C
    - 1 degrees of freedom.

    Unlike a count of draws it does not end at their number, so it can be corrected for any number
    of tests; it ends at `least_p`. 1 where the error cannot be known (one image).
    """
    return difference_p([TaskPairs(a, b, clusters).mean()])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be compared with the level as if there were
    one test (Holm 1979).
    """
    p_order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest_p = [1.0] * len(p_values), 0.0
    for rank, p_index in enumerate(p_order):
        largest_p = max(largest_p, min(1.0, (len(p_values) - rank) * p_values[p_index]))
        adjusted[p_index] = largest_p
    return adjusted


def chance_corrected(score: float, chance: float) -> float:
    """Share of the way from guessing to perfect: 0 at the chance level, 1 at 1, negative below
    chance.
    """
    if not 0 <= chance < 1:
        raise ValueError(f"the chance level must be at least 0 and below 1, got {chance}")
    return (score - chance) / (1 - chance)


@dataclass(frozen=True)
class Interval:
    value: float
    low: float  # nan, as high, where a task has one image alone
    high: float  # inf where a draw of the images may leave nothing to divide by


def retention(
    tasks: Sequence[tuple[Sequence[float], Sequence[float], Sequence[Hashable]]],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Mean over tasks of (score / score of the largest scale), in per cent, with a 95 % bootstrap
    interval by image.

    `tasks`: per task the scores of each document at the scale and at the largest scale, and its
    image. Where documents of several tasks show the same image, they are drawn apart. None where a
    task has a score of 0 at the largest scale.
    """
    if any(sum(largest_scores) <= 0 for _, largest_scores, _ in tasks):
        return None
    rng = np.random.default_rng(seed)
    kept_value, drawn = 0.0, np.zeros(draws)
    for scores, largest_scores, clusters in tasks:
        _check_lengths(scores=len(scores), largest=len(largest_scores), clusters=len(clusters))
        scale_sums, _ = _cluster_sums(np.asarray(scores, dtype=np.float64), clusters)
        largest_sums, _ = _cluster_sums(np.asarray(largest_scores, dtype=np.float64), clusters)
        draw_counts = rng.multinomial(
            len(scale_sums), np.full(len(scale_sums), 1 / len(scale_sums)), size=draws
        )
        kept_value += scale_sums.sum() / largest_sums.sum() / len(tasks)
        kept_sums, all_of_it = draw_counts @ scale_sums, draw_counts @ largest_sums
        # of nothing, nothing is lost; something is more than any share of it
        ratio = np.where(kept_sums > 0, np.inf, 1.0)
        drawn += np.divide(kept_sums, all_of_it, out=ratio, where=all_of_it > 0) / len(tasks)
        if len(scale_sums) == 1:
            drawn[:] = np.nan
    # between a number and inf there is nothing
    low_end, high_end = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return Interval(100 * float(kept_value), 100 * float(low_end), 100 * float(high_end))


def read_baselines(path: Path) -> dict[str, dict[str, float]]:
    """Task -> {"chance": .., "majority": ..} of a suite that ships them; empty where `path` does
    not exist.
    """
    if not path.exists():
        return {}
    baseline_rows = json.loads(path.read_text(encoding="utf-8"))
    return {
        task: {
            baseline_name: float(baseline_row[baseline_name])
            for baseline_name in ("chance", "majority")
        }
        for task, baseline_row in baseline_rows.items()
    }


def _cluster_sums(
    values: Float[np.ndarray, " n"], clusters: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Sum and number of the values of each cluster, in order of first appearance."""
    cluster_index: dict[Hashable, int] = {}
    positions = [cluster_index.setdefault(cluster, len(cluster_index)) for cluster in clusters]
    return np.bincount(positions, weights=values), np.bincount(positions).astype(np.float64)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        length_texts = ", ".join(
            f"{argument_name}: {argument_length}"
            for argument_name, argument_length in lengths.items()
        )
        raise ValueError(
            "expected the same number of values, at least one, for each document; got "
            f"{length_texts}"
        )
