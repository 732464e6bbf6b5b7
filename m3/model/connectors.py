"""Connectors: patch features of the vision encoder -> embeddings of the decoder.

in: `features [i, n, d_vision]`; out: `tokens [i, n, d_text]` (or `[i, queries, d_text]` for the
    resampler), before nesting.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from m3.model.aria_projector import AriaProjector
from m3.model.configuration import ConnectorConfig, M3Config
from m3.model.vision import vision_grid


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between (LLaVA-1.5's `mlp2x_gelu`,
    https://arxiv.org/abs/2310.03744).
    """

    def __init__(self, config: M3Config) -> None:
        d_vision, d_text = config.vision_config.hidden_size, config.text_config.hidden_size
        super().__init__(nn.Linear(d_vision, d_text), nn.GELU(), nn.Linear(d_text, d_text))


class Linear(nn.Sequential):
    """One linear layer (LLaVA, https://arxiv.org/abs/2304.08485)."""

    def __init__(self, config: M3Config) -> None:
        super().__init__(
            nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        )


class Resampler(nn.Module):
    """Learned queries read the patches in one cross-attention, then a feed-forward layer.

    Keys carry content and position, values content alone. (In MQT's published code keys carry the
    position only, so its queries average fixed places whatever the image shows.) Queries never see
    each other: a prefix of the outputs is what fewer queries would give, which is what the
    `query_prefix` nesting needs.
    """

    def __init__(self, config: M3Config) -> None:
        super().__init__()
        d_vision, d_text = config.vision_config.hidden_size, config.text_config.hidden_size
        spec: ConnectorConfig = config.connector
        if d_text % spec.num_heads:
            raise ValueError(
                f"connector.num_heads {spec.num_heads} does not divide the decoder's width {d_text}"
            )
        rows, columns = vision_grid(config.vision_config)
        self.num_heads = spec.num_heads
        self.query = nn.Parameter(torch.empty(spec.num_queries, d_text))
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
        key = self.k_proj(features) + self.position
        q, k, v = (
            rearrange(x, "i n (h d) -> i h n d", h=self.num_heads)
            for x in (query, key, self.v_proj(features))
        )
        read = self.o_proj(rearrange(scaled_dot_product_attention(q, k, v), "i h n d -> i n (h d)"))
        return read + self.mlp(self.norm_out(read))


CONNECTORS: dict[str, type[nn.Module]] = {
    "mlp2x_gelu": Mlp,
    "linear": Linear,
    "resampler": Resampler,
    "aria_projector": AriaProjector,
}


def build_connector(config: M3Config) -> nn.Module:
    """The connector that `config.connector.kind` names."""
    return CONNECTORS[config.connector.kind](config)
