"""Places of the sequences in packed rows: laid out once per forward, read by every layer of the
decoder.

in:  `sequence_lengths int64 [r, s]` of a batch (m3/data/collate.py), zeros where a row has fewer
    than s sequences;
out: `PackedSequences`, and which tokens of the batch are no padding.

The decoder is given the sequences one behind the other, `[1, t, d]`, without padding: what rows
they came in, and how full those were, makes no difference to it.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class PackedSequences:
    """Sequences of `t` tokens in all, out of rows of `r * l` places.

    bounds: cumulative lengths, int32, on the device of the batch.
    places: where the tokens stand, counted through all r rows; None where there is no padding.
    """

    lengths: tuple[int, ...]
    rows: int
    bounds: Int[Tensor, " sequences_and_one"]
    places: Int[Tensor, " t"] | None

    @classmethod
    def from_lengths(
        cls, sequence_lengths: Int[Tensor, "r s"], row_length: int
    ) -> "PackedSequences":
        """Sequences of rows of `row_length` places.

        Where there is none, all places are taken for one, so that something runs.

        Raises:
            ValueError: sequences that need more places than their row has.
        """
        rows = sequence_lengths.tolist()
        for number, row in enumerate(rows):
            if sum(row) > row_length or min(row, default=0) < 0:
                raise ValueError(
                    f"row {number} has {row_length} places, and its sequence_lengths {row} need "
                    f"{sum(row)}; give the lengths of "
                    "the sequences of each row, zeros behind them"
                )
        device, total = sequence_lengths.device, len(rows) * row_length
        lengths = [length for row in rows for length in row if length] or [total]
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        places = None
        if sum(lengths) < total:
            filled = [
                torch.arange(sum(row)) + number * row_length for number, row in enumerate(rows)
            ]
            places = torch.cat(filled).to(device)
        return cls(tuple(lengths), len(rows), bounds, places)

    def take(self, rows: Shaped[Tensor, "r l *rest"]) -> Tensor:
        """The tokens of the sequences, `[1, t, ...]`."""
        flat = rows.flatten(0, 1)
        return (flat if self.places is None else flat.index_select(0, self.places))[None]

    def put_back(self, tokens: Float[Tensor, "1 t d"], row_length: int) -> Float[Tensor, "r l d"]:
        """Tokens in rows of `row_length` places again, zeros at padding."""
        flat = tokens[0]
        if self.places is not None:
            flat = flat.new_zeros(self.rows * row_length, flat.shape[1]).index_copy(
                0, self.places, flat
            )
        return flat.unflatten(0, (self.rows, row_length))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    def decoder_arguments(self) -> dict[str, Any]:
        """The keywords a decoder hands to its layers: these sequences, and the same in
        transformers' FlashAttentionKwargs.
        """
        return {
            "packed": self,
            "cu_seq_lens_q": self.bounds,
            "cu_seq_lens_k": self.bounds,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


def real_tokens(
    input_ids: Int[Tensor, "r l"],
    attention_mask: Tensor | None,
    sequence_lengths: Int[Tensor, "r s"] | None,
) -> Bool[Tensor, "r l"]:
    """Marks what is no padding, by place: a padding token may be one that sequences hold
    themselves.
    """
    if sequence_lengths is not None:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return places[None] < sequence_lengths.sum(1, keepdim=True)
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        return attention_mask.bool()
    return torch.ones_like(input_ids, dtype=torch.bool)
