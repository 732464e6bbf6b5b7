"""How a budget is chosen from what the router predicts: the cheapest whose regret is tolerable.

in:  the regret of each budget that the router predicts, and the share of the largest budget's score
     that is to be kept;
out: one budget.

The threshold of a share was calibrated on held-out samples when the router was trained
(m3/training/budget_router/calibration.py): with it, the mean score of the chosen budgets was that
share of the largest budget's. The whole is an entry of the model's configuration, `budget_choice`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from m3.nesting import Budget, read_budget

DEFAULT_KEEP = 0.99
"""Share of the largest budget's score that `auto` keeps where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class BudgetChoice:
    """The router's sizes, the budgets it chooses among, and its calibration.

    `budgets`: cheapest first, by the operations up to the first answer token. `view`: resolution in
    pixels that an image is first seen at, None the largest. `target`: what the router predicts, a
    row of `m3.model.budgets.router.VALUES`. `thresholds`: pairs (share to keep, regret), ascending
    shares. `width`, `layers`, `heads`: of the router's transformer.
    """

    budgets: tuple[int | str, ...]
    view: int | None
    target: str
    thresholds: tuple[tuple[float, float], ...] = ()
    width: int = 64
    layers: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        pairs = tuple((float(keep), float(regret)) for keep, regret in self.thresholds)
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "thresholds", tuple(sorted(pairs)))
        if not self.budgets:
            raise ValueError("budget_choice.budgets is empty: name the budgets to choose among")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"budget_choice.heads {self.heads} must divide its width {self.width}")

    @property
    def ladder(self) -> tuple[Budget, ...]:
        """The budgets, cheapest first."""
        return tuple(read_budget(budget) for budget in self.budgets)

    def threshold(self, keep: float | None) -> float:
        """Regret that is tolerated to keep this share of the largest budget's score.

        Raises:
            ValueError: no calibration, or a share outside what was calibrated.
        """
        if not self.thresholds:
            raise ValueError(
                "this model's router was not calibrated: train it with `m3 train` (docs/auto.md)"
            )
        share = DEFAULT_KEEP if keep is None else keep
        shares = [calibrated for calibrated, _ in self.thresholds]
        if not shares[0] <= share <= shares[-1]:
            raise ValueError(
                f"auto:{share:g} is outside what this router was calibrated for: "
                f"{shares[0]:g} to {shares[-1]:g}"
            )
        # of the shares between two that were calibrated, the stricter one's
        return next(regret for calibrated, regret in self.thresholds if calibrated >= share)

    def choose(self, regrets: Sequence[float], keep: float | None) -> Budget:
        """The cheapest budget whose regret is tolerated."""
        threshold, least = self.threshold(keep), min(regrets)
        place = next(n for n, regret in enumerate(regrets) if regret - least <= threshold)
        return self.ladder[place]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        lists = {
            "budgets": list(self.budgets),
            "thresholds": [list(pair) for pair in self.thresholds],
        }
        return asdict(self) | lists


def decode_choice(value: BudgetChoice | Mapping[str, Any] | None) -> BudgetChoice | None:
    """The choice from its entry in config.json; a `ValueError` names a setting that it has not."""
    if value is None or isinstance(value, BudgetChoice):
        return value
    known = [field.name for field in fields(BudgetChoice)]
    unknown, missing = sorted(set(value) - set(known)), {"budgets", "view", "target"} - set(value)
    if unknown or missing:
        fault = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(sorted(missing))}"
        raise ValueError(f"budget_choice {fault}; its settings are {', '.join(known)}")
    return BudgetChoice(**value)
