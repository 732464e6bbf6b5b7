"""Arithmetic of scales: which ones a grid of tokens reaches, and how the tokens then stand."""

from abc import ABC, abstractmethod

Grid = int | tuple[int, int]
"""Where the tokens of an image stand: their number (a square grid, or an ordered list), or
(rows, columns).
"""


class UnreachableScaleError(ValueError):
    """A scale that the grid cannot give exactly. Nothing is ever rounded to a neighbour."""


class Nesting(ABC):
    """Scales of a kind of token reducer: how many coarser tokens `n` tokens can become.

    No parameters and no tensors: the processor counts placeholders by it, and the reducer
    (m3/model/reducers) makes as many tokens.
    """

    @abstractmethod
    def reachable(self, grid: Grid) -> tuple[int, ...]:
        """Every scale that `grid` reaches, ascending."""

    @abstractmethod
    def shape(self, grid: Grid, scale: int) -> Grid:
        """How the tokens stand at `scale`: (rows, columns), or their number where they are an
        ordered list.

        Raises `UnreachableScaleError` as `count` does.
        """

    def count(self, grid: Grid, scale: int) -> int:
        """Tokens at `scale`: `scale` itself, or an `UnreachableScaleError` with the choices."""
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
