"""The one interface of every nesting: which scales a grid of tokens reaches, and the tokens at a
scale.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

Grid = int | tuple[int, int]
"""Where the tokens of an image stand: their number (a square grid, or an ordered list), or
(rows, columns).
"""


class UnreachableScaleError(ValueError):
    """A scale that the grid cannot give exactly. Nothing is ever rounded to a neighbour."""


class Nesting(ABC):
    """Turns the `n` tokens of an image into `m` coarser ones; `m` is the *scale*, the count of
    visual tokens.
    """

    @abstractmethod
    def reachable(self, grid: Grid) -> tuple[int, ...]:
        """Every scale that `grid` reaches, ascending."""

    @abstractmethod
    def nest(
        self, tokens: Float[Tensor, "*batch n d"], scale: int, grid: Grid | None = None
    ) -> Float[Tensor, "*batch {scale} d"]:
        """The tokens of each image at `scale`.

        `grid` defaults to the number of tokens. Differentiable.
        """

    @abstractmethod
    def shape(self, grid: Grid, scale: int) -> Grid:
        """How the tokens of `nest` stand at `scale`: (rows, columns), or their number where they
        are an ordered list.

        Raises `UnreachableScaleError` as `count` does.
        """

    def count(self, grid: Grid, scale: int) -> int:
        """How many tokens `nest` returns at `scale`: `scale` itself, or an
        `UnreachableScaleError` with the choices.
        """
        scales = self.reachable(grid)
        if scale not in scales:
            shape = (
                f"{grid[0]}x{grid[1]} grid" if isinstance(grid, tuple) else f"set of {grid} tokens"
            )
            shown = (
                [str(s) for s in scales]
                if len(scales) <= 32
                else [str(scales[0]), "...", str(scales[-1])]
            )
            raise UnreachableScaleError(
                f"scale {scale} cannot be reached exactly from a {shape}; choose one of "
                f"{', '.join(shown)}"
            )
        return scale
