"""Aria's projector: the patches of a tile -> a list of tokens, one per learned query.

in:  `features [t, n, d_vision]` of tiles of one size, and which of them are image rather than
    padding `[t, n]`;
out: `tokens [t, q, d_text]`, with q by the number of patches: 1225 of a 490-pixel tile give 128,
    4900 of 980 give 256.

The queries of a small tile are the first of those of a large one, and queries never see each other.
So the first m tokens are what m queries would give: the `query_prefix` nesting, of a published
model and without any training.
Source: https://arxiv.org/abs/2410.05993 and `aria/model/projector.py` of
    https://github.com/rhymes-ai/Aria.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from m3.model.connectors.base import (
    Connector,
    ConnectorConfig,
    ConnectorSizes,
    OwnParameters,
    linear_weights,
)
from m3.model.connectors.resampler import check_queries


@dataclass(frozen=True, kw_only=True)
class AriaProjectorConfig(ConnectorConfig):
    """`patch_queries`: pairs (patches of a tile, queries that read it); the largest number of
    queries is `num_queries`. `num_heads`: heads of the cross-attention.
    """

    uses_mask: ClassVar[bool] = True
    num_queries: int
    num_heads: int
    patch_queries: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        check_queries(self.num_queries, self.num_heads)
        pairs = tuple((int(patches), int(queries)) for patches, queries in self.patch_queries)
        object.__setattr__(self, "patch_queries", pairs)
        if max((queries for _, queries in pairs), default=None) != self.num_queries:
            raise ValueError(
                "connector.patch_queries lists (patches of a tile, queries), and its largest "
                f"number of queries is num_queries; got num_queries {self.num_queries}, "
                f"patch_queries {list(pairs)}"
            )

    def grid(self, vision_grid: tuple[int, int]) -> int:
        # a tile of another number of patches is refused by the module, when it is read
        patches = vision_grid[0] * vision_grid[1]
        known = {pair[0]: pair[1] for pair in self.patch_queries}
        return known.get(patches, self.num_queries)

    def smallest_tile(self) -> int:
        return min(patches for patches, _ in self.patch_queries)


class AriaCrossAttention(OwnParameters):
    """Queries read patches.

    Every input passes two linear layers, as in the published weights: a bias-free one, then its
    share of `in_proj`. There is no residual connection and no position: keys and values are a set.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        # for queries, keys, values
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.linear = nn.Linear(width, width)

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.in_proj_weight, std=std)
        nn.init.zeros_(self.in_proj_bias)

    def forward(
        self,
        query: Float[Tensor, "q d"],
        features: Float[Tensor, "t n d"],
        is_image: Bool[Tensor, "t n"] | None,
    ) -> Float[Tensor, "t q d"]:
        features = self.norm_features(features)
        inputs = (
            self.q_proj(self.norm_query(query))[None],
            self.k_proj(features),
            self.v_proj(features),
        )
        shares = zip(inputs, self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            rearrange(linear(x, w, b), "t n (h d) -> t h n d", h=self.num_heads)
            for x, w, b in shares
        )
        mask = None if is_image is None else is_image[:, None, None]
        read = scaled_dot_product_attention(
            q.expand(len(features), -1, -1, -1), k, v, attn_mask=mask
        )
        return self.linear(self.out_proj(rearrange(read, "t h q d -> t q (h d)")))


class AriaProjector(Connector):
    """One cross-attention and a bias-free feed-forward layer; `connector.patch_queries` says how
    many queries read.
    """

    config_class = AriaProjectorConfig

    def __init__(self, config: AriaProjectorConfig, sizes: ConnectorSizes) -> None:
        super().__init__()
        d_vision, d_text = sizes.vision_width, sizes.text_width
        if d_vision % config.num_heads:
            raise ValueError(
                f"connector.num_heads {config.num_heads} does not divide the vision encoder's "
                f"width {d_vision}"
            )
        self.patch_queries = {
            int(patches): int(queries) for patches, queries in config.patch_queries
        }
        self.query = nn.Parameter(torch.empty(config.num_queries, d_vision))
        self.cross_attention = AriaCrossAttention(d_vision, config.num_heads)
        self.norm_out = nn.LayerNorm(d_vision)
        self.linear_in = nn.Linear(d_vision, d_text, bias=False)
        self.linear_out = nn.Linear(d_text, d_text, bias=False)
        self.activation = nn.GELU(approximate="tanh")

    def forward(
        self, features: Float[Tensor, "t n d_vision"], is_image: Bool[Tensor, "t n"] | None = None
    ) -> Float[Tensor, "t q d_text"]:
        """
        Args:
            is_image: False for patches of padding, which no query reads; None when there are none.

        Raises:
            ValueError: tiles of a number of patches that the weights were not made for.
        """
        patches = features.shape[1]
        if patches not in self.patch_queries:
            raise ValueError(
                f"the projector reads tiles of {', '.join(map(str, self.patch_queries))} patches, "
                f"but got {patches}: "
                "give images at one of the sizes of the processor (max_image_size)"
            )
        query = self.query[: self.patch_queries[patches]]
        read = self.cross_attention(query, features, is_image)
        return self.linear_out(self.activation(self.linear_in(self.norm_out(read))))

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.query, std=std)

    def flops(self, patches: int) -> int:
        """As the resampler's, with a third of W_in for the queries and two thirds for the
        patches.
        """
        width = self.query.shape[1]
        queries = self.patch_queries.get(patches, len(self.query))
        attention = self.cross_attention
        share = attention.in_proj_weight.numel() // 3
        projections = linear_weights(attention.k_proj) + linear_weights(attention.v_proj)
        from_queries = linear_weights(self) - projections + share
        from_patches = projections + 2 * share
        return 2 * (queries * from_queries + patches * from_patches) + 4 * queries * patches * width
