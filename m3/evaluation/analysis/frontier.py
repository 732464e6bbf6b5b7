"""Reading a curve of accuracy against cost: what dominates, where it bends, how much it keeps.

In: costs and scores of budgets. Out: the Pareto front, the knee, the smallest sufficient scale.
"""

import math
from collections.abc import Mapping, Sequence


def pareto_front(cost_scores: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other beats: none cheaper or equal is better,
    none better or equal cheaper.

    In the order of the cost. Equal points beat each other as little as themselves: all of them are
    on it.
    """
    front_indices: list[int] = []
    best_score = -math.inf
    for index in sorted(
        range(len(cost_scores)), key=lambda i: (cost_scores[i][0], -cost_scores[i][1], i)
    ):
        if cost_scores[index][1] > best_score or (
            front_indices and cost_scores[index] == cost_scores[front_indices[-1]]
        ):
            front_indices.append(index)
            best_score = cost_scores[index][1]
    return front_indices


def knee(curve: Mapping[int, float]) -> int | None:
    """The scale at which more tokens stop paying: farthest above the straight line between the
    curve's ends.

    Tokens on a logarithmic axis, both axes stretched to [0, 1] (Satopaa et al., "Finding a Kneedle
    in a Haystack", 2011, without its smoothing). None for fewer than three scales, or where no
    scale lies above the line.
    """
    scales = sorted(curve)
    if len(scales) < 3 or curve[scales[-1]] <= curve[scales[0]]:
        return None
    width = math.log(scales[-1] / scales[0])
    height = curve[scales[-1]] - curve[scales[0]]
    line_distances = {
        s: (curve[s] - curve[scales[0]]) / height - math.log(s / scales[0]) / width
        for s in scales[1:-1]
    }
    farthest_scale = max(line_distances, key=lambda scale: line_distances[scale])
    return farthest_scale if line_distances[farthest_scale] > 0 else None


def sufficient(curve: Mapping[int, float], share: float = 0.95) -> int | None:
    """The smallest scale that keeps `share` of the largest scale's score; None where that has
    nothing to keep.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share to keep must be above 0 and at most 1, got {share}")
    largest_score = curve[max(curve)]
    if largest_score <= 0:
        return None
    return min(
        scale
        for scale, score in curve.items()
        if score >= share * largest_score or scale == max(curve)
    )
