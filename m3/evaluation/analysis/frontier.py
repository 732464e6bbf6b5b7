"""Reading a curve of accuracy against cost: what dominates, where it bends, how much it keeps.

In: costs and scores of budgets. Out: the Pareto front, the knee, the smallest sufficient budget.

Budgets of one resolution are in order by their tokens. Budgets of several resolutions are not (9
tokens of a large picture cost more than 36 of a small one), so their places on the axis are their
costs.
"""

import math
from collections.abc import Mapping, Sequence

from m3.nesting import read_budget

Setting = int | str


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


def front_curve(
    curve: Mapping[Setting, float], costs: Mapping[Setting, float]
) -> dict[Setting, float]:
    """The budgets of a curve that no other of it beats, cheapest first."""
    settings = [setting for setting in curve if setting in costs]
    front = pareto_front([(costs[setting], curve[setting]) for setting in settings])
    return {settings[index]: curve[settings[index]] for index in front}


def has_resolutions(settings: Sequence[Setting]) -> bool:
    """Tell whether budgets differ in their resolution, so that tokens alone do not order them."""
    return len({read_budget(setting).resolution for setting in settings}) > 1


def knee(
    curve: Mapping[Setting, float], costs: Mapping[Setting, float] | None = None
) -> Setting | None:
    """The budget at which more stops paying: farthest above the straight line between the curve's
    ends.

    Tokens (or `costs`, by budget) on a logarithmic axis, both axes stretched to [0, 1] (Satopaa et
    al., "Finding a Kneedle in a Haystack", 2011, without its smoothing). None for fewer than three
    budgets, or where none lies above the line.
    """
    places = _tokens(curve) if costs is None else costs
    settings = sorted(curve, key=lambda setting: places[setting])
    if len(settings) < 3 or curve[settings[-1]] <= curve[settings[0]]:
        return None
    first, last = settings[0], settings[-1]
    width = math.log(places[last] / places[first])
    height = curve[last] - curve[first]
    line_distances = {
        setting: (curve[setting] - curve[first]) / height
        - math.log(places[setting] / places[first]) / width
        for setting in settings[1:-1]
    }
    farthest = max(line_distances, key=lambda setting: line_distances[setting])
    return farthest if line_distances[farthest] > 0 else None


def sufficient(
    curve: Mapping[Setting, float],
    share: float = 0.95,
    costs: Mapping[Setting, float] | None = None,
) -> Setting | None:
    """The cheapest budget (by tokens, or by `costs`) that keeps `share` of the largest one's
    score; None where that has nothing to keep.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share to keep must be above 0 and at most 1, got {share}")
    places = _tokens(curve) if costs is None else costs
    largest = max(curve, key=read_budget)
    if curve[largest] <= 0:
        return None
    enough = [
        setting
        for setting, score in curve.items()
        if score >= share * curve[largest] or setting == largest
    ]
    return min(enough, key=lambda setting: places[setting])


def _tokens(curve: Mapping[Setting, float]) -> dict[Setting, float]:
    return {setting: float(read_budget(setting).tokens) for setting in curve}
