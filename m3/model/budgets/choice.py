"""How a budget is chosen from what the router predicts: what it would lose, and what it costs.

in:  a value of each budget that the router predicts (lower is better), and the share of the largest
     budget's score that is to be kept;
out: one budget, the one with the least sum of its value and of its price: a price per operation times
     the operations that it takes.

A price in place of a tolerance: the cheapest budget whose value is near enough to the best takes a
second look for one question to save little and spares one where it would save much; at a price, a
gain is bought where it is cheap. On m3-tiny the choices at a price cost a tenth less (docs/auto.md).

The price of a share was calibrated on held-out samples when the router was trained
(m3/training/budget_router/calibration.py): with it, the mean score of the chosen budgets was that
share of the largest budget's. The whole is an entry of the model's configuration, `budget_choice`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m3.config import decode
from m3.nesting import Budget, read_budget

TARGETS = ("score", "loss_gap", "ratio", "ranking")
"""What a router may have been trained to predict: rows of `m3.model.budgets.router.VALUES`."""
DEFAULT_KEEP = 0.99
"""Share of the largest budget's score that `auto` keeps where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class BudgetChoice:
    """The router's sizes, the budgets it chooses among, and its calibration.

    `budgets`: cheapest first, by the operations up to the first answer token. `view`: resolution in
    pixels that an image is first seen at, None the largest. `costs`: operations of each budget, the
    router's and the look at the view included, as a share of the largest budget's. `target`: what
    the router predicts, a row of `m3.model.budgets.router.VALUES`. `prices`: pairs (share to keep,
    price of the largest budget's operations), ascending shares. `width`, `layers`, `heads`: of the
    router's transformer.
    """

    budgets: tuple[int | str, ...]
    view: int | None
    target: str
    costs: tuple[float, ...]
    prices: tuple[tuple[float, float], ...] = ()
    width: int = 64
    layers: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        pairs = tuple((float(keep), float(price)) for keep, price in self.prices)
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "costs", tuple(float(cost) for cost in self.costs))
        object.__setattr__(self, "prices", tuple(sorted(pairs)))
        if not self.budgets:
            raise ValueError("budgets is empty: name the budgets to choose among")
        if len(self.costs) != len(self.budgets):
            raise ValueError(f"costs has {len(self.costs)} entries for {len(self.budgets)} budgets")
        if self.target not in TARGETS:
            raise ValueError(f"target {self.target!r} is none of {', '.join(TARGETS)}")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")
        if self.view is not None and self.view < 1:
            raise ValueError(
                f"view is a resolution in pixels, at least 1, or null, got {self.view}"
            )
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide its width {self.width}")

    @property
    def ladder(self) -> tuple[Budget, ...]:
        """The budgets, cheapest first."""
        return tuple(read_budget(budget) for budget in self.budgets)

    def price(self, keep: float | None) -> float:
        """Price of the largest budget's operations to keep this share of its score.

        Raises:
            ValueError: no calibration, or a share outside what was calibrated.
        """
        if not self.prices:
            raise ValueError(
                "this model's router was not calibrated: train it with `m3 train` (docs/auto.md)"
            )
        share = DEFAULT_KEEP if keep is None else keep
        shares = [calibrated for calibrated, _ in self.prices]
        if not shares[0] <= share <= shares[-1]:
            raise ValueError(
                f"auto:{share:g} is outside what this router was calibrated for: "
                f"{shares[0]:g} to {shares[-1]:g}"
            )
        # of the shares between two that were calibrated, the stricter one's
        return next(price for calibrated, price in self.prices if calibrated >= share)

    def choose(self, values: Sequence[float], keep: float | None) -> Budget:
        """The budget whose value and price together are least; of equal ones the cheapest."""
        price = self.price(keep)
        sums = [value + price * cost for value, cost in zip(values, self.costs, strict=True)]
        return self.ladder[sums.index(min(sums))]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        lists = {
            "budgets": list(self.budgets),
            "costs": list(self.costs),
            "prices": [list(pair) for pair in self.prices],
        }
        return asdict(self) | lists


def decode_choice(value: BudgetChoice | Mapping[str, Any] | None) -> BudgetChoice | None:
    """The choice from its entry in config.json; a `ValueError` names the setting that is wrong."""
    if value is None or isinstance(value, BudgetChoice):
        return value
    return decode(dict(value), BudgetChoice, "budget_choice")
