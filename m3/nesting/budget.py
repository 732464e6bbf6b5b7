"""Budgets: how large an image is when the vision encoder sees it, and how many tokens are read.

    36      36 visual tokens (per tile) of the image at the model's largest resolution
    36@48   36 visual tokens of the image seen at 48 pixels

What a resolution means is the tiling's (m3/nesting/tiling.py): the side of a square, or the longest
side of the picture that is cut into tiles.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

BUDGET = re.compile(r"(\d+)(?:@(\d+))?")


@dataclass(frozen=True)
class Budget:
    """`tokens`: per tile, the scale. `resolution`: in pixels; None is the largest."""

    tokens: int
    resolution: int | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"a resolution is at least 1 pixel, got {self.resolution}")

    def __str__(self) -> str:
        return str(self.setting)

    def __lt__(self, other: "Budget") -> bool:
        """Fewer tokens first; of as many tokens the lower resolution."""
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, float]:
        return self.tokens, inf if self.resolution is None else float(self.resolution)

    @property
    def setting(self) -> int | str:
        """As users and files write it: 36, or "36@48"."""
        return self.tokens if self.resolution is None else f"{self.tokens}@{self.resolution}"


def read_budget(setting: "int | str | Budget") -> Budget:
    """The budget that 36, "36" or "36@48" means; a `ValueError` where it is none of them."""
    if isinstance(setting, Budget):
        return setting
    if type(setting) is int:
        return Budget(setting)
    match = BUDGET.fullmatch(setting.replace(" ", "")) if isinstance(setting, str) else None
    if match is None:
        raise ValueError(
            f"{setting!r} is no visual budget: expected a number of tokens such as 36, or tokens "
            "at a resolution in pixels such as 36@48"
        )
    return Budget(int(match[1]), int(match[2]) if match[2] else None)


def read_ladder(settings: "Iterable[int | str | Budget]") -> tuple[Budget, ...]:
    """Distinct budgets in order: fewest tokens first, of as many the lowest resolution."""
    return tuple(sorted({read_budget(setting) for setting in settings}))


def resolutions(budgets: Iterable[Budget]) -> tuple[int | None, ...]:
    """Distinct resolutions of the budgets, ascending, the largest (None) last."""
    distinct = {budget.resolution for budget in budgets}
    return tuple(sorted(distinct, key=lambda side: inf if side is None else side))
