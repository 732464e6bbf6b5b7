"""Pixel shuffle: squares of neighbouring patches become one token each (InternVL).

in:  `features [t, rows * columns, d_vision]`;
out: `tokens [t, (rows / f) * (columns / f), d_text]` with f = `downsample`: 24 x 24 patches give
    12 x 12 tokens at f = 2. Nothing is averaged: the f x f patches of a square stand side by side
    in one vector, row by row, before two linear layers.

Source: https://arxiv.org/abs/2404.16821; `InternVLModel.pixel_shuffle` and
    `InternVLMultiModalProjector` of transformers (`downsample_ratio` 0.5 is `downsample` 2).
"""

import math
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from m3.model.connectors.base import Connector, ConnectorConfig, ConnectorSizes, linear_weights


@dataclass(frozen=True, kw_only=True)
class PixelShuffleConfig(ConnectorConfig):
    """`downsample`: patches along each side of the square that becomes one token."""

    downsample: int = 2

    def __post_init__(self) -> None:
        if self.downsample < 1:
            raise ValueError(f"connector.downsample must be at least 1, got {self.downsample}")

    def grid(self, vision_grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = vision_grid
        if rows % self.downsample or columns % self.downsample:
            raise ValueError(
                f"connector.downsample {self.downsample} does not divide the vision encoder's grid "
                f"of {rows} x {columns} patches; choose a divisor of both, or images of another "
                "size"
            )
        return rows // self.downsample, columns // self.downsample


class PixelShuffle(Connector):
    """LayerNorm, then two linear layers with a GELU between, on the patches of each square."""

    config_class = PixelShuffleConfig

    def __init__(self, config: PixelShuffleConfig, sizes: ConnectorSizes) -> None:
        super().__init__()
        self.downsample = config.downsample
        self.token_grid = config.grid(sizes.vision_grid)
        merged_width = config.downsample**2 * sizes.vision_width
        self.norm = nn.LayerNorm(merged_width)
        self.linear_in = nn.Linear(merged_width, sizes.text_width)
        self.activation = nn.GELU()
        self.linear_out = nn.Linear(sizes.text_width, sizes.text_width)

    def forward(self, features: Float[Tensor, "t n d_vision"]) -> Float[Tensor, "t m d_text"]:
        rows, columns = self.token_grid
        tokens = features.shape[1] // self.downsample**2
        merged = rearrange(
            features,
            "t (y dy x dx) d -> t (y x) (dy dx d)",
            y=math.isqrt(tokens * rows // columns),  # tiles keep their shape at other resolutions
            dy=self.downsample,
            dx=self.downsample,
        )
        return self.linear_out(self.activation(self.linear_in(self.norm(merged))))

    def flops(self, patches: int) -> int:
        """All linear layers at every token, of which there is one per square of patches."""
        return 2 * (patches // self.downsample**2) * linear_weights(self)
