"""Grid pooling, the nesting of Matryoshka Multimodal Models (M3).

Source: https://arxiv.org/abs/2405.17430, section 3. The image's patch tokens form a grid. Averaging
each k x k cell of it gives a coarser grid:

    24 x 24 = 576 tokens  --k=2-->  144  --k=4-->  36  --k=8-->  9  --k=24-->  1

Means of equal cells compose, so pooling 576 tokens to 144 and those to 36 is pooling 576 to 36:
coarse sets derive from fine ones, by any path. Only cells that tile the grid exactly are allowed.
"""

import math

from einops import reduce
from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid, Nesting


class GridPool(Nesting):
    """Means of square cells that tile the grid; the whole grid as one cell is always reachable."""

    def reachable(self, grid: Grid) -> tuple[int, ...]:
        rows, columns = as_rectangle(grid)
        common_side = math.gcd(rows, columns)
        cell_counts = {
            rows // k * (columns // k) for k in range(1, common_side + 1) if common_side % k == 0
        }
        return tuple(sorted(cell_counts | {1}))

    def shape(self, grid: Grid, scale: int) -> tuple[int, int]:
        rows, columns = as_rectangle(grid)
        if self.count((rows, columns), scale) == 1:
            return 1, 1
        k = math.isqrt(rows * columns // scale)
        return rows // k, columns // k


def pool_grid(
    tokens: Float[Tensor, "*batch n d"], scale: int, grid: Grid | None = None
) -> Float[Tensor, "*batch {scale} d"]:
    """Average the cells of `grid`, by default a square of as many tokens. Differentiable.

    Raises:
        UnreachableScaleError: no square cells tile the grid into `scale` tokens.
        ValueError: a grid of another number of tokens.
    """
    rows, columns = as_rectangle(tokens.shape[-2] if grid is None else grid)
    if rows * columns != tokens.shape[-2]:
        raise ValueError(
            f"a {rows}x{columns} grid has {rows * columns} tokens, but {tokens.shape[-2]} were "
            "given"
        )
    h, w = GridPool().shape((rows, columns), scale)
    if scale == 1:
        return tokens.mean(dim=-2, keepdim=True)
    grid_cells = tokens.reshape(-1, rows, columns, tokens.shape[-1])
    pooled_tokens = reduce(grid_cells, "b (h kh) (w kw) d -> b (h w) d", "mean", h=h, w=w)
    return pooled_tokens.reshape(*tokens.shape[:-2], scale, tokens.shape[-1])


def as_rectangle(grid: Grid) -> tuple[int, int]:
    """(rows, columns) of `grid`; a plain number of tokens must be a square."""
    if isinstance(grid, tuple):
        return grid
    side = math.isqrt(grid)
    if side * side != grid:
        raise ValueError(
            f"{grid} tokens do not form a square grid; give the grid as (rows, columns)"
        )
    return side, side
