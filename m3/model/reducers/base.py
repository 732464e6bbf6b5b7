"""The interface of every token reducer: its options, its parameters, its tokens at a scale."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from m3.nesting import Grid, Nesting
from m3.nesting.image_reader import Reduce


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The settings of a reducer that has none."""


class TokenReducer(nn.Module, ABC):
    """Reduces the `n` tokens of each tile to the `m` of a scale; parameters are its own.

    As the submodule `model.reducer` its parameters are saved, trained (`parts.reducer`), sharded
    and kept from quantisation like the connector's.
    """

    Options: ClassVar[type] = NoOptions
    """Dataclass of the settings that `nesting` of the model's configuration may hold beside
    `kind` and `trained_scales`.
    """

    def __init__(self, options: Any, nesting: Nesting, grid: Grid, width: int) -> None:
        """options: an `Options`. nesting: the arithmetic of its scales. grid: how the tokens of a
        tile stand. width: of a token, the decoder's.
        """
        super().__init__()
        self.options, self.nesting, self.grid, self.width = options, nesting, grid, width

    @abstractmethod
    def reduce(
        self, tokens: Float[Tensor, "t n d"], scale: int, grid: Grid
    ) -> Float[Tensor, "t {scale} d"]:
        """The tokens of each tile at `scale`; `grid` is that of these tiles. Differentiable."""

    def forward(
        self, tokens: Float[Tensor, "t n d"], read: Callable[[Tensor, Reduce], Tensor]
    ) -> Tensor:
        """`read(tokens, self.reduce)`, which reduces as often as a batch has scales.

        The model calls this once per forward pass, with or without images: ZeRO-3 and FSDP gather
        the parameters by the calls of modules, which must be equally many on all ranks. In
        training every parameter has a gradient, also at scales that do not use it.
        """
        result = read(tokens, self.reduce)
        if self.training:
            for parameter in self.parameters():
                result = result + 0.0 * parameter.sum()
        return result

    def init_weights(self, std: float) -> None:
        """Draw the parameters of a new reducer; std: the model's `initializer_range`."""
        return

    def flops(self, scale: int, grid: Grid) -> int:
        """Operations on one tile of this grid (a multiply-add is 2); sums of tokens are left out."""
        return 0


def decode_options(kind: str, reducer: type[TokenReducer], options: Any) -> Any:
    """The reducer's `Options` from a mapping; a `ValueError` names a setting that it has not."""
    if isinstance(options, reducer.Options):
        return options
    if not isinstance(options, Mapping):  # of another kind
        options = {}
    known = [field.name for field in fields(reducer.Options)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"the nesting {kind} has no setting {', '.join(unknown)}; {has}")
    return reducer.Options(**options)
