"""The oracle: what a perfect choice of the scale, sample by sample, would reach, and with how many
visual tokens.

In: scores [n samples, k scales] and visual tokens of the same shape, scales ascending: fewest
    tokens first, of as many the lowest resolution. Out: `Oracle`.

M3 (https://arxiv.org/abs/2405.17430, section 4.3) takes for each sample the smallest scale that
answers right. Two things flatter that number, and are undone here:

- Samples wrong at every scale need some scale too. M3 counts them at the smallest; `tokens` counts
  them at the largest, which is what a system that escalates until it is right would spend.
  `tokens_as_published` is M3's count.
- The best of k answers profits from luck. `floor` is what k independent guesses at the task's
  chance level would reach together, 1 - (1 - chance)^k, and `corrected` is the oracle's share of
  the way from there to 1. Answers of one model are not independent, so the floor is the most that
  luck can give. `steady` needs no assumption: it takes the smallest scale from which on every
  larger one is right as well, hence scores as the largest scale does; what it saves is saved
  without luck.

A score need not be 0 or 1: the smallest scale with the sample's best score is taken, and a best
score of 0 is wrong. More is
better here: of a share of errors, 1 - error comes in (direction.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from m3.evaluation.statistics import chance_corrected
from m3.nesting import read_budget


@dataclass(frozen=True)
class Oracle:
    """Shares in [0, 1] where the scores are; tokens are means per sample."""

    n: int
    score: float
    largest_score: float  # of the largest scale, for all samples
    tokens: float
    tokens_as_published: float
    largest_tokens: float
    floor: float | None  # None where the chance level is not known
    corrected: float | None
    largest_corrected: float | None  # (score of the largest scale - chance) / (1 - chance)
    steady_tokens: float
    needs: Mapping[int | str, int]  # scale -> samples whose smallest right scale it is
    never: int  # samples wrong at every scale


def oracle(
    scores: Float[np.ndarray, "n k"],
    tokens: Float[np.ndarray, "n k"],
    scales: Sequence[int | str],
    chance: float | None = None,
) -> Oracle:
    """The oracle of one model on one task. `chance`: the expected score of a guess, in [0, 1)."""
    if list(scales) != sorted(set(scales), key=read_budget) or scores.shape[1] != len(scales):
        raise ValueError(
            f"{scores.shape[1]} columns of scores for the scales {list(scales)}, which must ascend"
        )
    smallest_scales = smallest_right(scores)
    is_right = smallest_scales < len(scales)
    row_indices = np.arange(len(scores))
    last_column = len(scales) - 1
    spent_tokens = tokens[row_indices, np.where(is_right, smallest_scales, last_column)]
    steady = tokens[row_indices, np.minimum(smallest_steady(scores), last_column)]
    oracle_score, largest = float(scores.max(1).mean()), float(scores[:, -1].mean())
    chance_floor = None if chance is None else 1 - (1 - chance) ** len(scales)
    return Oracle(
        n=len(scores),
        score=oracle_score,
        largest_score=largest,
        tokens=float(spent_tokens.mean()),
        tokens_as_published=float(
            tokens[row_indices, np.where(is_right, smallest_scales, 0)].mean()
        ),
        largest_tokens=float(tokens[:, -1].mean()),
        floor=chance_floor,
        corrected=None if chance_floor is None else chance_corrected(oracle_score, chance_floor),
        largest_corrected=None if chance is None else chance_corrected(largest, chance),
        steady_tokens=float(steady.mean()),
        needs={
            scale: int((smallest_scales == column).sum()) for column, scale in enumerate(scales)
        },
        never=int((~is_right).sum()),
    )


def smallest_right(scores: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """Column of the smallest scale with each sample's best score; k where the best is 0."""
    best_scores = scores.max(1, keepdims=True)
    return np.where(best_scores[:, 0] > 0, (scores >= best_scores).argmax(1), scores.shape[1])


def smallest_steady(scores: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """Column of the smallest scale from which on no larger one scores less than the largest; k
    where that is 0.
    """
    is_level = (scores >= scores[:, -1:])[:, ::-1]
    # scales in a row, from the largest down
    run = np.where(is_level.all(1), scores.shape[1], (~is_level).argmax(1))
    return np.where(scores[:, -1] > 0, scores.shape[1] - run, scores.shape[1])
