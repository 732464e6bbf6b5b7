"""Whether a model's confidence tells how often it is right, at each scale.

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
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    order = np.lexsort((right, sure))
    sure, right = sure[order], right[order]
    _, ties, sizes = np.unique(sure, return_inverse=True, return_counts=True)
    right = (np.bincount(ties, weights=right) / sizes)[ties]
    parts = [part for part in np.array_split(np.arange(len(sure)), bins) if len(part)]
    found = tuple(
        Bin(float(sure[part].mean()), float(right[part].mean()), len(part)) for part in parts
    )
    error = sum(one.n * abs(one.confidence - one.accuracy) for one in found) / len(sure)
    return Calibration(found, float(error), float(sure.mean()), len(sure))
