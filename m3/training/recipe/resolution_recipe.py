"""What a recipe of resolution distillation may say (m3/recipes/tiny_resolutions.yaml): YAML with a
`resolution_distillation` entry.
"""

import math
from dataclasses import dataclass, field

from m3.data.recipe import Data
from m3.nesting import read_ladder, resolutions
from m3.training.recipe.sections import Hardware, Optimiser, Schedule


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """`learning_rate`: of tower and connector. `weights`: of each resolution's error in the loss, the
    largest under `full`; 1 where none is given. `full` keeps what the model sees at its largest
    resolution as it is.
    """

    learning_rate: float = 1e-4
    weights: dict[int | str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {"learning_rate": self.learning_rate} | {
            f"weights.{resolution}": weight for resolution, weight in self.weights.items()
        }
        for name, number in numbers.items():
            if not 0 < number < math.inf:
                raise ValueError(
                    f"resolution_distillation.{name} must be a number above 0, got {number}"
                )
        weights = {int(key) if str(key).isdigit() else key: w for key, w in self.weights.items()}
        object.__setattr__(self, "weights", weights)  # frozen; an override's keys are texts


@dataclass(frozen=True, kw_only=True)
class ResolutionRecipe:
    """Distillation of a finished model's tower and connector over resolutions; the decoder stays as
    it is (m3/training/resolutions/distiller.py).

    `matryoshka_vis_token_scale`: the ladder of the checkpoint that comes out; its resolutions are
    those that are distilled. `batch_size` of the schedule: pictures.
    """

    run: str
    model: str
    data: Data
    schedule: Schedule
    matryoshka_vis_token_scale: tuple[int | str, ...]
    resolution_distillation: DistillationSettings = field(default_factory=DistillationSettings)
    optimiser: Optimiser = field(default_factory=Optimiser)
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        sides = resolutions(read_ladder(self.matryoshka_vis_token_scale))
        known = ["full" if side is None else side for side in sides]
        if len(known) < 2 or known[-1] != "full":
            raise ValueError(
                "recipe: matryoshka_vis_token_scale must have budgets at the largest resolution and "
                "at lower ones, such as [9@24, 36@48, 36, 144], got "
                f"{list(self.matryoshka_vis_token_scale)}"
            )
        unknown = [side for side in self.resolution_distillation.weights if side not in known]
        if unknown:
            raise ValueError(
                f"resolution_distillation.weights names {unknown}, but the resolutions of the "
                f"ladder are {known}"
            )
        if self.hardware.deepspeed is not None:
            raise ValueError(
                "recipe: hardware.deepspeed does not go with resolution_distillation, which trains "
                "the tower and the connector alone; launch it with torchrun"
            )

    def weight(self, resolution: int | None) -> float:
        """Weight of a resolution's error in the loss."""
        key = "full" if resolution is None else resolution
        return self.resolution_distillation.weights.get(key, 1.0)
