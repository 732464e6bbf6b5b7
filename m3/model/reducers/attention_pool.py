"""Attention pooling: a weighted mean of each cell of the grid, with weights that are learned.

Cells are those of grid pooling. For every scale there is a small set of learned queries, one per
head; a query scores the tokens of a cell, and each head averages its share of the features by
its own weights:

    w_hj = softmax over the cell of q_h . (W_k x_j)_h / sqrt(d_head),   y_h = sum_j w_hj x_jh

Queries begin at zero, where all weights of a cell are equal: a new reducer is grid pooling
exactly, and a model trained with grid pooling may go on with it. Cells of one token are that
token.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from m3.model.reducers.base import TokenReducer
from m3.nesting import Grid, Nesting, as_rectangle


@dataclass(frozen=True, kw_only=True)
class AttentionPoolOptions:
    """heads: shares of the features that are averaged by weights of their own. key_width: of a
    head's queries and keys.
    """

    heads: int = 4
    key_width: int = 32

    def __post_init__(self) -> None:
        if self.heads < 1 or self.key_width < 1:
            raise ValueError(
                f"nesting.heads and nesting.key_width must be at least 1, got {self.heads} and "
                f"{self.key_width}"
            )


class AttentionPool(TokenReducer):
    """A learned weighted mean of each cell; `queries [scales, heads, key_width]`."""

    Options = AttentionPoolOptions
    options: AttentionPoolOptions

    def __init__(
        self, options: AttentionPoolOptions, nesting: Nesting, grid: Grid, width: int
    ) -> None:
        super().__init__(options, nesting, grid, width)
        if width % options.heads:
            raise ValueError(
                f"nesting.heads {options.heads} does not divide the width {width} of a token; "
                "choose a divisor"
            )
        self.scales = nesting.reachable(grid)
        self.queries = nn.Parameter(torch.zeros(len(self.scales), options.heads, options.key_width))
        self.key = nn.Linear(width, options.heads * options.key_width, bias=False)

    def init_weights(self, std: float) -> None:
        nn.init.zeros_(self.queries)
        nn.init.normal_(self.key.weight, std=std)

    def reduce(
        self, tokens: Float[Tensor, "t n d"], scale: int, grid: Grid
    ) -> Float[Tensor, "t {scale} d"]:
        rows, columns = as_rectangle(grid)
        down, across = as_rectangle(self.nesting.shape((rows, columns), scale))
        if scale == rows * columns:
            return tokens
        if scale not in self.scales:
            raise ValueError(
                f"attention_pool has queries for the scales {list(self.scales)} of its own grid, "
                f"got scale {scale} of a {rows} x {columns} grid"
            )
        cells = rearrange(
            tokens, "t (h kh w kw) d -> t (h w) (kh kw) d",
            h=down, w=across, kh=rows // down, kw=columns // across,
        )  # fmt: skip
        queries = self.queries[self.scales.index(scale)]
        keys = rearrange(self.key(cells), "t m k (h c) -> t m k h c", h=self.options.heads)
        scores = torch.einsum("hc,tmkhc->tmkh", queries, keys) / math.sqrt(self.options.key_width)
        weights = scores.softmax(2, torch.promote_types(scores.dtype, torch.float32)).to(
            tokens.dtype
        )
        values = rearrange(cells, "t m k (h c) -> t m k h c", h=self.options.heads)
        return rearrange(torch.einsum("tmkh,tmkhc->tmhc", weights, values), "t m h c -> t m (h c)")

    def flops(self, scale: int, grid: Grid) -> int:
        rows, columns = as_rectangle(grid)
        if scale == rows * columns:
            return 0
        tokens, keys = rows * columns, self.options.heads * self.options.key_width
        return 2 * tokens * (self.width * keys + keys + self.width)
