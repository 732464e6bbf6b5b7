"""What a recipe of a budget router may say (m3/recipes/tiny_router.yaml): YAML with a
`budget_router` entry.
"""

from dataclasses import dataclass, field
from typing import Literal

from m3.data.recipe import Data
from m3.training.recipe.sections import Hardware

TARGET_NAMES = ("score", "loss_gap", "ratio", "ranking")


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """The router and its fitting.

    `targets`: what routers are trained to predict (m3/training/budget_router/targets.py); the one
    with the cheapest choices is kept. `budgets`: to choose among, null for those of the model's ladder
    that score more than every cheaper one.
    `width`, `layers`, `heads`: of its transformer. `epochs`, `learning_rate`, `weight_decay`: of
    AdamW.
    """

    targets: tuple[str, ...] = TARGET_NAMES
    budgets: tuple[int | str, ...] | None = None
    width: int = 64
    layers: int = 1
    heads: int = 4
    epochs: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGET_NAMES]
        if unknown or not self.targets:
            raise ValueError(
                f"budget_router.targets {list(self.targets)}: name at least one of "
                f"{', '.join(TARGET_NAMES)}"
            )


@dataclass(frozen=True, kw_only=True)
class BudgetRouterRecipe:
    """Training of a budget router for a finished model, whose own weights stay as they are.

    `samples`: questions about one image each to learn from; `held_out`: those after them, for the
    calibration. The model should not have been trained on them. `questions`: the `first` of every
    sample, or `each`, alone with the image, where none refers to those before it. `batch_size`:
    questions asked together.
    """

    run: str
    model: str
    data: Data
    samples: int
    held_out: int
    questions: Literal["first", "each"] = "first"
    budget_router: RouterSettings = field(default_factory=RouterSettings)
    batch_size: int = 32
    seed: int = 0
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if min(self.samples, self.held_out, self.batch_size) < 1:
            raise ValueError(
                "recipe: samples, held_out and batch_size are at least 1, got "
                f"{self.samples}, {self.held_out} and {self.batch_size}"
            )
