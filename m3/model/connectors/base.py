"""The interface of every connector: its configuration and arithmetic, and the module.

A connector is one file of this folder and one row of `CONNECTORS`. Its configuration says what can
be said without weights (the grid of its tokens, the tiles it reads); its module computes the
tokens, draws its own parameters and counts its operations.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from m3.nesting import Grid


@dataclass(frozen=True)
class ConnectorSizes:
    """Sizes on both sides of a connector: the encoder's patches `[rows * columns, vision_width]`
    and the decoder's width.
    """

    vision_grid: tuple[int, int]
    vision_width: int
    text_width: int


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """Settings of a connector. Those that have more than `kind` inherit from this.

    `kind`: a row of `m3.model.connectors.CONNECTORS`.
    """

    kind: str
    uses_mask: ClassVar[bool] = False
    """Whether the module takes `is_image` and leaves padding out."""

    def grid(self, vision_grid: tuple[int, int]) -> Grid:
        """Grid of the tokens of a tile: (rows, columns), or their number if they are an ordered
        list.

        Raises:
            ValueError: a grid of patches that the connector cannot read.
        """
        return vision_grid

    def smallest_tile(self) -> int | None:
        """Patches of the smallest tile it reads; None where tiles have the encoder's own size."""
        return None


class OwnParameters(nn.Module):
    """A module with parameters beside those of linear and normalisation layers."""

    def init_weights(self, std: float) -> None:
        """Draws these parameters; those of its submodules are drawn elsewhere."""
        raise NotImplementedError


class Connector(OwnParameters):
    """Made of a `config_class` and `ConnectorSizes`.

    Its forward turns `features [t, n, d_vision]` into `tokens [t, m, d_text]`, before nesting;
    where `uses_mask` says so it takes `is_image [t, n]` besides, False for patches of padding.
    """

    config_class: ClassVar[type[ConnectorConfig]] = ConnectorConfig

    def init_weights(self, std: float) -> None:
        """Nothing to draw beside linear and normalisation layers."""

    def flops(self, patches: int) -> int:
        """Floating-point operations for one tile: here all linear layers at every patch."""
        return 2 * patches * linear_weights(self)


def linear_weights(module: nn.Module) -> int:
    """Elements in the matrices of all linear layers."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
