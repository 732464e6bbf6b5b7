"""The control `fastv`: visual tokens are dropped inside the decoder, by the attention they get
(https://arxiv.org/abs/2403.06764).

In: a batch of prompts with all visual tokens, and how many of them each row may keep. Out: nothing;
while the block runs, the decoder's layers from K = 2 on see, of each row's visual tokens, only
those that got most attention in layer K from the last token of the prompt (mean over heads), as the
paper does.

The paper cuts the sequence after layer K. Here the dropped tokens stay and are masked as keys in
the layers behind: the output of a dropped token is read by nothing but keys and values, so the
answers are the same, and positions stay as they were. What
differs: nothing becomes faster. The cost that a report shows is that of the cut sequence. Works
through torch's hooks on any decoder of transformers with a list `layers`, under eager attention,
which alone gives the attention weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m3.model import M3ForConditionalGeneration
from m3.model.anatomy import layer_stack

LAYERS = 2
"""K of the paper: full layers before tokens are dropped."""


@dataclass
class Pruned:
    """Tokens that are dropped, once the scores are known; `[b, l]` over the prompt."""

    is_visual: Bool[Tensor, "b l"]
    keep: Int[Tensor, " b"]
    last: Int[Tensor, " b"]  # index of the prompt's last token in each row
    dropped: Bool[Tensor, "b l"] | None = None

    def score(self, weights: Float[Tensor, "rows heads q k"]) -> None:
        """Attention of the layer that decides.

        Rows repeated for beams are alike; each row's first one counts.
        """
        if self.dropped is not None:
            return  # only the prompt decides
        first_weights = weights[:: len(weights) // len(self.keep)]
        query_index = self.last.to(weights.device)[:, None, None, None].expand(
            -1, first_weights.shape[1], 1, first_weights.shape[3]
        )
        scores = first_weights.gather(2, query_index)[:, :, 0].float().mean(1)
        scores = scores.masked_fill(~self.is_visual, -torch.inf)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        self.dropped = self.is_visual & (rank >= self.keep.to(rank.device)[:, None])

    def mask(self, attention_mask: Float[Tensor, "rows 1 q k"]) -> Float[Tensor, "rows 1 q k"]:
        """The layer's mask, with the dropped keys closed."""
        assert self.dropped is not None, "the scoring layer ran before"
        dropped = self.dropped.repeat_interleave(len(attention_mask) // len(self.dropped), 0)
        closed = torch.zeros_like(attention_mask[:, :, :1], dtype=torch.bool)
        closed[:, 0, 0, : dropped.shape[1]] = dropped
        return attention_mask.masked_fill(closed, torch.finfo(attention_mask.dtype).min)


@contextmanager
def pruning(
    model: M3ForConditionalGeneration,
    is_visual: Bool[Tensor, "b l"],
    keep: Int[Tensor, " b"],
    last: Int[Tensor, " b"],
) -> Iterator[Pruned]:
    """While the block runs, one `generate` or `forward` of the prompts drops visual tokens behind
    layer `LAYERS`.

    Raises:
        ValueError: a decoder without that many layers, or whose layers are no list.
    """
    layers = decoder_layers(model)
    pruning_state, decoder = Pruned(is_visual, keep, last), model.model.language_model
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")

    def score(_: nn.Module, __: Any, output: Any) -> None:
        pruning_state.score(output[1])

    def close(
        _: nn.Module, positional: tuple, named: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        return positional, named | {"attention_mask": pruning_state.mask(named["attention_mask"])}

    hooks = [layers[LAYERS - 1].self_attn.register_forward_hook(score)]
    hooks += [layer.register_forward_pre_hook(close, with_kwargs=True) for layer in layers[LAYERS:]]
    try:
        yield pruning_state
    finally:
        for hook in hooks:
            hook.remove()
        decoder.set_attn_implementation(before)


def decoder_layers(model: M3ForConditionalGeneration) -> list[Any]:
    """The decoder's layers, at least one more than are left whole."""
    layers = layer_stack(model.model.language_model)
    if len(layers) <= LAYERS:
        raise ValueError(
            f"fastv leaves {LAYERS} layers whole and needs at least one behind them; this decoder "
            f"has {len(layers)}"
        )
    return list(layers)


def mean_visual_tokens(full: int, kept_tokens: int, layers: int) -> int:
    """Visual tokens that a layer reads, as the mean over the decoder's layers."""
    return round((LAYERS * full + (layers - LAYERS) * kept_tokens) / layers)
