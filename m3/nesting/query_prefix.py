"""Query prefix, the nesting of Matryoshka Query Transformers (MQT,
https://arxiv.org/abs/2405.19315) and of Aria.

The tokens are the outputs of learned queries, in a fixed order. The first m of them are the image
at scale m: each query reads the image by itself in one cross-attention, so the first m outputs are
the same however many follow, and a short prefix is a true subset of a long one.
"""

from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid, Nesting


class QueryPrefix(Nesting):
    """The first `scale` tokens; every count from 1 to all of them is reachable."""

    def reachable(self, grid: Grid) -> tuple[int, ...]:
        tokens = grid[0] * grid[1] if isinstance(grid, tuple) else grid
        return tuple(range(1, tokens + 1))

    def shape(self, grid: Grid, scale: int) -> int:
        return self.count(grid, scale)


def take_prefix(
    tokens: Float[Tensor, "*batch n d"], scale: int
) -> Float[Tensor, "*batch {scale} d"]:
    """The first `scale` tokens, or an `UnreachableScaleError` where there are fewer."""
    QueryPrefix().count(tokens.shape[-2], scale)
    return tokens[..., :scale, :]
