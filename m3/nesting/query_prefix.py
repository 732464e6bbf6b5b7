"""Query prefix, the nesting of Matryoshka Query Transformers (MQT) and of Aria.

Source: https://arxiv.org/abs/2405.19315. The tokens are the outputs of learned queries, in a fixed
order; the first m of them are the image at scale m. Each query reads the image independently in one
cross-attention, so the first m outputs do not depend on the number of queries.
"""

from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid, Nesting


class QueryPrefix(Nesting):
    """First `scale` tokens; every count from 1 to all of them is reachable."""

    def reachable(self, grid: Grid) -> tuple[int, ...]:
        token_count = grid[0] * grid[1] if isinstance(grid, tuple) else grid
        return tuple(range(1, token_count + 1))

    def shape(self, grid: Grid, scale: int) -> int:
        return self.count(grid, scale)


def take_prefix(
    tokens: Float[Tensor, "*batch n d"], scale: int
) -> Float[Tensor, "*batch {scale} d"]:
    """Take the first `scale` tokens; an `UnreachableScaleError` where there are fewer."""
    QueryPrefix().count(tokens.shape[-2], scale)
    return tokens[..., :scale, :]
