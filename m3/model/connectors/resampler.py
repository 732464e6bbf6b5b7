"""The resampler: a list of tokens, one per learned query.

in:  `features [t, n, d_vision]`;
out: `tokens [t, q, d_text]`.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from m3.model.connectors.base import Connector, ConnectorConfig, ConnectorSizes, linear_weights


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig(ConnectorConfig):
    """`num_queries`: tokens of a tile; `num_heads`: heads of the cross-attention."""

    num_queries: int = 64
    num_heads: int = 8

    def __post_init__(self) -> None:
        check_queries(self.num_queries, self.num_heads)

    def grid(self, vision_grid: tuple[int, int]) -> int:
        return self.num_queries


def check_queries(num_queries: int, num_heads: int) -> None:
    """A `ValueError` where either is below 1."""
    if num_queries < 1 or num_heads < 1:
        raise ValueError(
            "connector.num_queries and connector.num_heads must be at least 1, got "
            f"{num_queries} and {num_heads}"
        )


class Resampler(Connector):
    """Learned queries read the patches in one cross-attention, then a feed-forward layer.

    Keys carry content and position, values content alone. (In MQT's published code keys carry the
    position only, so its queries average fixed places whatever the image shows.) Queries never see
    each other: a prefix of the outputs is what fewer queries would give, which is what the
    `query_prefix` nesting needs.
    """

    config_class = ResamplerConfig

    def __init__(self, config: ResamplerConfig, sizes: ConnectorSizes) -> None:
        super().__init__()
        d_vision, d_text = sizes.vision_width, sizes.text_width
        if d_text % config.num_heads:
            raise ValueError(
                f"connector.num_heads {config.num_heads} does not divide the decoder's width "
                f"{d_text}"
            )
        rows, columns = sizes.vision_grid
        self.num_heads, self.vision_grid = config.num_heads, sizes.vision_grid
        self.query = nn.Parameter(torch.empty(config.num_queries, d_text))
        self.position = nn.Parameter(torch.empty(rows * columns, d_text))
        self.norm_features = nn.LayerNorm(d_vision)
        self.q_proj = nn.Linear(d_text, d_text)
        self.k_proj = nn.Linear(d_vision, d_text)
        self.v_proj = nn.Linear(d_vision, d_text)
        self.o_proj = nn.Linear(d_text, d_text)
        self.norm_out = nn.LayerNorm(d_text)
        self.mlp = nn.Sequential(nn.Linear(d_text, d_text), nn.GELU(), nn.Linear(d_text, d_text))

    def forward(self, features: Float[Tensor, "i n d_vision"]) -> Float[Tensor, "i queries d_text"]:
        features = self.norm_features(features)
        query = self.q_proj(self.query).expand(features.shape[0], -1, -1)
        key = self.k_proj(features) + self._positions(features.shape[1])
        q, k, v = (
            rearrange(x, "i n (h d) -> i h n d", h=self.num_heads)
            for x in (query, key, self.v_proj(features))
        )
        read = self.o_proj(rearrange(scaled_dot_product_attention(q, k, v), "i h n d -> i n (h d)"))
        return read + self.mlp(self.norm_out(read))

    def _positions(self, patches: int) -> Float[Tensor, "n d"]:
        """Positions of a tile of `patches`, interpolated where it has another resolution."""
        rows, columns = self.vision_grid
        if patches == rows * columns:
            return self.position
        share = math.sqrt(patches / (rows * columns))
        table = rearrange(self.position, "(y x) d -> 1 d y x", y=rows)
        shape = (round(rows * share), round(columns * share))
        resized = interpolate(table.float(), shape, mode="bicubic", antialias=True)
        return rearrange(resized, "1 d y x -> (y x) d").to(self.position.dtype)

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.query, std=std)
        nn.init.normal_(self.position, std=std)

    def flops(self, patches: int) -> int:
        """With q queries of width d: 2 (q (W_q + W_o + W_mlp) + patches (W_k + W_v)) +
        4 q patches d.
        """
        queries, width = self.query.shape
        from_patches = linear_weights(self.k_proj) + linear_weights(self.v_proj)
        from_queries = linear_weights(self) - from_patches
        return 2 * (queries * from_queries + patches * from_patches) + 4 * queries * patches * width
