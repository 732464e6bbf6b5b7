"""Calibration: does a model's confidence tell how often it is right, at each scale?

In: confidences in [0, 1] (confidence.py) and whether each is right.
Out: `Calibration`: bins of equally many answers, and the expected calibration error over them,
sum_b n_b / n |confidence_b - accuracy_b| (Naeini et al. 2015; bins of equal mass:
https://arxiv.org/abs/1904.01685).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    confidence: float  # mean
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    bins: tuple[Bin, ...]  # ascending confidence
    error: float  # expected calibration error, 0 is best
    confidence: float  # mean
    n: int


def calibration(
    confidences: Sequence[float], scores: Sequence[float], bins: int = 10
) -> Calibration:
    """Calibration of answers with their scores in [0, 1]; at most `bins` bins, fewer for fewer
    answers.

    Answers of equal confidence each count with their mean score, so that the order of the answers
    tells nothing.
    """
    if len(confidences) != len(scores) or not len(scores):
        raise ValueError(
            f"{len(confidences)} confidences for {len(scores)} scores; one of each per answer, at "
            "least one"
        )
    confidence_values, score_values = (
        np.asarray(confidences, dtype=np.float64),
        np.asarray(scores, dtype=np.float64),
    )
    sorted_indices = np.lexsort((score_values, confidence_values))
    confidence_values, score_values = (
        confidence_values[sorted_indices],
        score_values[sorted_indices],
    )
    _, tie_groups, group_sizes = np.unique(
        confidence_values, return_inverse=True, return_counts=True
    )
    score_values = (np.bincount(tie_groups, weights=score_values) / group_sizes)[tie_groups]
    bin_indices = [
        bin_index
        for bin_index in np.array_split(np.arange(len(confidence_values)), bins)
        if len(bin_index)
    ]
    calibration_bins = tuple(
        Bin(
            float(confidence_values[bin_index].mean()),
            float(score_values[bin_index].mean()),
            len(bin_index),
        )
        for bin_index in bin_indices
    )
    mean_error = sum(
        calibration_bin.n * abs(calibration_bin.confidence - calibration_bin.accuracy)
        for calibration_bin in calibration_bins
    ) / len(confidence_values)
    return Calibration(
        calibration_bins, float(mean_error), float(confidence_values.mean()), len(confidence_values)
    )
