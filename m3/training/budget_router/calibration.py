"""Calibration of a router on samples that it has not learned from: at which price of operations its
choices keep a share of the largest budget's score, and what they then cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m3.model.budgets.mixture import mixture_shares
from m3.nesting import Budget

SHARES = tuple(percent / 100 for percent in range(80, 101))
"""Shares of the largest budget's score for which a price is kept."""
PRICES = (0.0, *torch.logspace(-4, 2, 400).tolist())
"""Prices that are tried; values are shares of wrong answers, or nats."""


@dataclass(frozen=True)
class ChoiceCost:
    """Operations of a choice: `budgets` up to the first answer token at each, `router` and `look`
    of the router and of seeing the cheapest view, at the resolution `view`.
    """

    budgets: Mapping[Budget, int]
    router: int
    look: int
    view: int | None

    def of(self, budget: Budget) -> int:
        """Operations of a budget that the router chose; an image that is read as it was looked at is seen
        once.
        """
        look = 0 if budget.resolution == self.view else self.look
        return self.budgets[budget] + self.router + look

    def shares(self, budgets: Sequence[Budget]) -> tuple[float, ...]:
        """Operations of each budget, as a share of what the largest takes without a choice."""
        largest = self.budgets[max(self.budgets)]
        return tuple(self.of(budget) / largest for budget in budgets)


@dataclass(frozen=True)
class ChosenMeans:
    """Means over the calibration's samples, of the budgets chosen at one price.

    `share`: asked for, of the largest budget's score. `score`: answers that the model would say.
    `random_score`: of a random mixture of fixed budgets at equal operations. `flops`: up to the first
    answer token, the router's and every look included.
    """

    share: float
    price: float
    score: float
    largest_score: float
    random_score: float
    flops: float
    largest_flops: float
    visual_tokens: float

    def to_dict(self) -> dict[str, float]:
        """For a line of metrics."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def chosen_places(
    values: Float[Tensor, "n k"], costs: Sequence[float], price: float
) -> Int[Tensor, " n"]:
    """The budget of each sample whose value and price together are least."""
    return (values + price * torch.tensor(costs)).argmin(1)


def calibrate(
    values: Float[Tensor, "n k"],
    is_right: Bool[Tensor, "n k"],
    costs: Sequence[float],
    largest: int,
) -> tuple[tuple[float, float], ...]:
    """Pairs (share, price): the highest price up to which the choices keep that share of the score
    of the budget at place `largest`. Beyond the first price that does not keep it nothing is taken,
    though by chance a later one may.
    """
    scores = [
        float(is_right.gather(1, chosen_places(values, costs, price)[:, None]).float().mean())
        for price in PRICES
    ]
    asked = float(is_right[:, largest].float().mean())
    # the worst score up to each price
    floors = list(accumulate(scores, min))
    return tuple(
        (
            share,
            max(
                (p for p, low in zip(PRICES, floors, strict=True) if low >= share * asked),
                default=0.0,
            ),
        )
        for share in SHARES
    )


def random_mixture(flops: float, points: Sequence[tuple[int, float]]) -> float:
    """Score of the best random mixture of fixed budgets at so many operations in the mean.

    `points`: (operations, score) of each fixed budget.
    """
    costs, scores = [cost for cost, _ in points], [score for _, score in points]
    shares = mixture_shares(flops, costs, scores)
    return sum(share * score for share, score in zip(shares, scores, strict=True))


def chosen_means(
    values: Float[Tensor, "n k"],
    is_right: Bool[Tensor, "n k"],
    budgets: Sequence[Budget],
    cost: ChoiceCost,
    share: float,
    price: float,
) -> ChosenMeans:
    """Means of the choices at a price."""
    places = chosen_places(values, cost.shares(budgets), price)
    largest = budgets.index(max(budgets))
    chosen = [budgets[place] for place in places.tolist()]
    costs = [cost.of(budget) for budget in chosen]
    points = [
        (cost.budgets[budget], float(is_right[:, place].float().mean()))
        for place, budget in enumerate(budgets)
    ]
    mean_flops = sum(costs) / len(costs)
    return ChosenMeans(
        share=share,
        price=price,
        score=float(is_right.gather(1, places[:, None]).float().mean()),
        largest_score=float(is_right[:, largest].float().mean()),
        random_score=random_mixture(mean_flops, points),
        flops=mean_flops,
        largest_flops=float(cost.budgets[budgets[largest]]),
        visual_tokens=sum(budget.tokens for budget in chosen) / len(chosen),
    )
