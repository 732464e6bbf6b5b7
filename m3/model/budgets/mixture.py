"""Random mixtures of fixed budgets: what any choice among them has to be better than.

in:  operations and score of each fixed budget, and the operations that a mixture may take in the mean;
out: the share of each budget in the best mixture that takes as many.

A mixture of two budgets costs and scores what lies between the two, whatever the questions are; so
all mixtures together reach the upper hull of the points, and the best one mixes two of them.
"""

from collections.abc import Sequence


def mixture_shares(flops: float, costs: Sequence[float], scores: Sequence[float]) -> list[float]:
    """Shares of the budgets, in their order, in the mixture of the best score at `flops` at most.

    Below the cheapest budget it is that alone.
    """
    count = len(costs)
    cheapest = min(range(count), key=lambda n: (costs[n], -scores[n]))
    affordable = [n for n in range(count) if costs[n] <= flops]
    best = max(affordable, key=lambda n: scores[n], default=cheapest)
    best_score, best_shares = scores[best], {best: 1.0}
    for low in affordable:
        for high in range(count):
            if costs[high] <= flops:
                continue
            share = (flops - costs[low]) / (costs[high] - costs[low])
            score = scores[low] + share * (scores[high] - scores[low])
            if score > best_score:
                best_score, best_shares = score, {low: 1 - share, high: share}
    return [best_shares.get(n, 0.0) for n in range(count)]
