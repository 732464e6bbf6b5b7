"""Direction of metrics (higher or lower is better), and which scores can be averaged.

In: what the harness's task says of its metric (`higher_is_better`). Out: `Kind`, and scores turned
so that more is better. Differences, tables and charts keep a metric's own sign; whatever chooses a
best (oracle, Pareto front, knee, "kept", right and wrong) asks here.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Kind:
    """Direction and unit of a task's scores.

    `is_share`: of a hundred, or of one; else points of some unit (MME, an error in metres).
    """

    higher_is_better: bool
    is_share: bool

    def __str__(self) -> str:
        return f"{'more' if self.higher_is_better else 'less'} is better, {'share' if self.is_share else 'points'}"


ACCURACY = Kind(higher_is_better=True, is_share=True)
"""What is averaged where tasks are of several kinds."""
LESS = "less is better"
ARROW = " ↓"
"""Behind the name of a task whose metric is better where it is less."""


def towards_better(
    scores: Float[np.ndarray, "*shape"], kind: Kind
) -> Float[np.ndarray, "*shape"] | None:
    """Scores of which more is better: 1 - score for a share of errors.

    None for an error without an end, or outside [0, 1].
    """
    if kind.higher_is_better:
        return scores
    return 1 - scores if kind.is_share and bool(((scores >= 0) & (scores <= 1)).all()) else None
