"""Cost of a method's visual tokens: the formulas of m3/model/cost.py, applied to the method's own
operations.

Choosing among tokens is not counted: a few products of n x n or n x d, far below one layer of the
decoder.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from m3.evaluation.token_reduction.fastv import LAYERS
from m3.evaluation.token_reduction.methods import FASTV, RESOLUTION
from m3.model import M3ForConditionalGeneration
from m3.model.cost import Cost, CostModel
from m3.nesting import Budget, Tiles, get_nesting


class LowResolutionCost(CostModel):
    """A tower and a connector that see as many patches as the decoder reads tokens."""

    def __init__(self, model: M3ForConditionalGeneration, patches: int) -> None:
        super().__init__(model)
        self._patches = patches

    def patches(self, resolution: int | None = None) -> int:
        return self._patches


def method_cost(
    model: M3ForConditionalGeneration,
    method: str,
    budget: Budget,
    text_tokens: int,
    pictures: Sequence[Tiles],
) -> Cost:
    """Cost of a prompt with pictures in these tiles, made at the budget's resolution, their tokens
    chosen by `method`.
    """
    reader = model.config.reader
    seen_tiles = {budget.resolution: sum(picture.number for picture in pictures)}

    def tokens(scale: int) -> int:
        return sum(reader.count(scale, picture) for picture in pictures)

    formulas = LowResolutionCost(model, budget.tokens) if method == RESOLUTION else CostModel(model)
    cost = formulas.prompt_cost(budget.setting, tokens(budget.tokens), text_tokens, seen_tiles)
    if method != FASTV:
        return cost
    # Every layer counts alike, so a decoder that drops tokens behind some layers lies between the
    # two on the line.
    largest_scale = get_nesting(model.config.nesting.kind).reachable(model.config.grid)[-1]
    full = formulas.prompt_cost(largest_scale, tokens(largest_scale), text_tokens, seen_tiles)
    share = LAYERS / formulas.decoder_layers
    full_cost = asdict(full)
    mixed = {
        cost_name: round(share * full_cost[cost_name] + (1 - share) * reduced_number)
        for cost_name, reduced_number in asdict(cost).items()
        if cost_name != "scale"
    }
    return replace(cost, **mixed)
