"""The first learned queries (MQT, https://arxiv.org/abs/2405.19315; Aria)."""

from jaxtyping import Float
from torch import Tensor

from m3.model.reducers.base import TokenReducer
from m3.nesting import Grid, take_prefix


class QueryPrefixReducer(TokenReducer):
    """The first `scale` tokens; the queries are the connector's."""

    def reduce(
        self, tokens: Float[Tensor, "t n d"], scale: int, grid: Grid
    ) -> Float[Tensor, "t {scale} d"]:
        return take_prefix(tokens, scale)
