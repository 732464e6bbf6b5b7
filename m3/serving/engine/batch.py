"""The running batch: prompts join it and answers leave it between any two steps (continuous
batching).

In: prompts as ids, with their images at any mix of scales; then one token per row and step. Out:
    logits of each row's next token.

Rows are padded on the left, so that all end in the same column; a new prompt's keys and values, or
the batch's, are padded on the left to one length and set beside each other. A mask hides the
padding and every row counts its own positions, so a row's numbers are those it would have alone.
Columns that are padding in all rows are cut off when rows leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from m3.model import M3ForConditionalGeneration


@dataclass(frozen=True)
class Read:
    """Prompts that were read: logits of their next tokens; their keys and values; which columns
    are no padding.
    """

    logits: Float[Tensor, "rows vocab"]
    cache: DynamicCache
    real: Bool[Tensor, "rows l"]

    def repeated(self, counts: Sequence[int]) -> "Read":
        """Each row so many times: several answers to a prompt that was read once."""
        if all(count == 1 for count in counts):
            return self
        repeats = torch.tensor(counts, device=self.real.device)
        row_index = torch.arange(len(counts), device=self.real.device).repeat_interleave(repeats)
        self.cache.batch_select_indices(row_index)
        return Read(self.logits[row_index], self.cache, self.real[row_index])


class Batch:
    """Rows in the order in which they joined."""

    def __init__(self, model: M3ForConditionalGeneration, pad_token_id: int) -> None:
        self._model, self._pad = model, pad_token_id
        self.clear()

    def clear(self) -> None:
        """All rows leave."""
        self._cache: DynamicCache | None = None
        self._real = torch.zeros(0, 0, dtype=torch.bool, device=self._model.device)

    def __len__(self) -> int:
        return len(self._real)

    @property
    def columns(self) -> int:
        """Tokens of the longest row, which all rows take in memory."""
        return self._real.shape[1]

    @torch.no_grad()
    def read(self, prompts: Sequence[list[int]], images: Mapping[str, Tensor]) -> Read:
        """Reads prompts that are new; `images` as `m3.inference.image_features.image_inputs` gives
        them for all of these rows.

        The
        batch stays as it is until they join."""
        longest = max(map(len, prompts))
        ids = torch.tensor(
            [[self._pad] * (longest - len(prompt_ids)) + prompt_ids for prompt_ids in prompts],
            device=self._real.device,
        )
        prompt_lengths = torch.tensor(
            [len(prompt_ids) for prompt_ids in prompts], device=self._real.device
        )
        real = (
            torch.arange(longest, device=prompt_lengths.device)[None]
            >= longest - prompt_lengths[:, None]
        )
        cache = DynamicCache(config=self._model.config.text_config)
        return Read(self._forward(ids, real, cache, images), cache, real)

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Every row goes on by one token."""
        assert self._cache is not None and len(tokens) == len(self)
        self._real = pad(self._real, (0, 1), value=True)
        return self._forward(tokens[:, None], self._real, self._cache, {})

    def keep(self, rows: Sequence[int]) -> None:
        """The others leave."""
        if len(rows) == len(self):
            return
        if not rows:
            self.clear()
            return
        assert self._cache is not None
        row_index = torch.tensor(rows, device=self._real.device)
        self._real = self._real[row_index]
        empty = int(self._real.any(0).int().argmax())
        self._real = self._real[:, empty:]
        self._cache.batch_select_indices(row_index)
        for layer in self._cache.layers if empty else ():
            # `merges`; a batch of one row has no empty columns
            assert isinstance(layer, DynamicLayer)
            layer_keys, layer_values = _held(layer)
            layer.keys, layer.values = layer_keys[:, :, empty:], layer_values[:, :, empty:]

    def _forward(
        self,
        ids: Int[Tensor, "rows l"],
        real: Bool[Tensor, "rows all"],
        cache: DynamicCache,
        images: Mapping[str, Tensor],
    ) -> Float[Tensor, "rows vocab"]:
        positions = (real.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=real.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **images,
        )
        return output.logits[:, -1].float()

    def join(self, new_rows: Read) -> None:
        """They take their places behind the others."""
        cache, real = new_rows.cache, new_rows.real
        if self._cache is None:
            self._cache, self._real = cache, real
            return
        joined_length = max(self._real.shape[1], real.shape[1])
        self._real = torch.cat(
            [
                pad(place_mask, (joined_length - place_mask.shape[1], 0))
                for place_mask in (self._real, real)
            ]
        )
        for own_layer, new_layer in zip(self._cache.layers, cache.layers, strict=True):
            assert isinstance(own_layer, DynamicLayer) and isinstance(
                new_layer, DynamicLayer
            )  # `merges`
            own_layer.keys, own_layer.values = (
                torch.cat(
                    [
                        pad(place_mask, (0, 0, joined_length - place_mask.shape[2], 0))
                        for place_mask in state_pair
                    ]
                )
                for state_pair in zip(_held(own_layer), _held(new_layer), strict=True)
            )


def _held(layer: DynamicLayer) -> tuple[Float[Tensor, "rows h l k"], Float[Tensor, "rows h l v"]]:
    assert layer.keys is not None and layer.values is not None  # prompts were read
    return layer.keys, layer.values


def merges(model: M3ForConditionalGeneration) -> bool:
    """Tell whether rows of this decoder can join a running batch: all its layers keep every key and
    value.
    """
    return all(
        type(layer) is DynamicLayer
        for layer in DynamicCache(config=model.config.text_config).layers
    )
