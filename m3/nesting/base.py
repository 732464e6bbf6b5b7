"""Arithmetic of scales: those that a grid of tokens reaches, and the shape of the result."""

from abc import ABC, abstractmethod

Grid = int | tuple[int, int]
"""Shape of an image's tokens: (rows, columns), or their number (a square grid, an ordered list)."""
SCALE_OPTION = "matryoshka_vis_token_scale"
"""Public name of the number of visual tokens, wherever a user gives it."""


class UnreachableScaleError(ValueError):
    """A scale that the grid cannot reach exactly. Scales are never rounded."""


class Nesting(ABC):
    """Scales of a kind of token reducer: the coarser token counts that a grid can become.

    No parameters and no tensors: the processor counts placeholders with it, and the reducer
    (m3/model/reducers) makes as many tokens.
    """

    @abstractmethod
    def reachable(self, grid: Grid) -> tuple[int, ...]:
        """Every scale that `grid` reaches, ascending."""

    @abstractmethod
    def shape(self, grid: Grid, scale: int) -> Grid:
        """Shape of the tokens at `scale`; an `UnreachableScaleError` as in `count`."""

    def count(self, grid: Grid, scale: int) -> int:
        """Token count at `scale`, or an `UnreachableScaleError` with the reachable scales."""
        scales = self.reachable(grid)
        if scale not in scales:
            grid_text = (
                f"{grid[0]}x{grid[1]} grid" if isinstance(grid, tuple) else f"set of {grid} tokens"
            )
            listed_scales = (
                [str(s) for s in scales]
                if len(scales) <= 32
                else [str(scales[0]), "...", str(scales[-1])]
            )
            raise UnreachableScaleError(
                f"scale {scale} cannot be reached exactly from a {grid_text}; choose one of "
                f"{', '.join(listed_scales)}"
            )
        return scale
