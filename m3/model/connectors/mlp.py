"""Connectors that turn each patch into a token of its own: linear layers."""

# torch types `_modules` of Sequential and of Module differently: hence what pyright ignores
from torch import nn

from m3.model.connectors.base import Connector, ConnectorConfig, ConnectorSizes


class Mlp(nn.Sequential, Connector):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Two linear layers with a GELU between (LLaVA-1.5's `mlp2x_gelu`,
    https://arxiv.org/abs/2310.03744).
    """

    def __init__(self, config: ConnectorConfig, sizes: ConnectorSizes) -> None:
        super().__init__(
            nn.Linear(sizes.vision_width, sizes.text_width),
            nn.GELU(),
            nn.Linear(sizes.text_width, sizes.text_width),
        )


class Linear(nn.Sequential, Connector):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One linear layer (LLaVA, https://arxiv.org/abs/2304.08485)."""

    def __init__(self, config: ConnectorConfig, sizes: ConnectorSizes) -> None:
        super().__init__(nn.Linear(sizes.vision_width, sizes.text_width))
