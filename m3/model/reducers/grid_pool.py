"""Grid pooling without parameters (M3, https://arxiv.org/abs/2405.17430, section 3)."""

from jaxtyping import Float
from torch import Tensor

from m3.model.reducers.base import TokenReducer
from m3.nesting import Grid, pool_grid


class GridPoolReducer(TokenReducer):
    """Means of square cells."""

    def reduce(
        self, tokens: Float[Tensor, "t n d"], scale: int, grid: Grid
    ) -> Float[Tensor, "t {scale} d"]:
        return pool_grid(tokens, scale, grid)
