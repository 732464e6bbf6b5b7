"""Attention over packed rows that computes the sequences and nothing between them.

in:  `query [b, h, l, d]`, `key [b, h_kv, l, d]`, `value [b, h_kv, l, d_value]` of a layer, and
     where the sequences stand (m3/model/packed_sequences.py);
out: `[b, l, h, d_value]`.

With a boolean mask of l x l all pairs of places are computed, and most of them thrown away. Here
each sequence attends to itself alone, so that a row costs the sum of the squares of its sequences,
however long it is. transformers knows this attention as `packed` (through AttentionInterface and
AttentionMaskInterface), and any decoder that hands keywords on to its layers can use
it: m3/model/packing_check.py finds out.

Honoured: grouped queries, windows and chunks (by the decoder's own mask function), soft caps
(`softcap`, Gemma 2) and sinks (`s_aux`, gpt-oss). Biases of positions and sparse indices are
refused. Kernels: torch's variable-length flash attention on CUDA in half precision, SDPA sequence
by sequence everywhere else; scores are written out where there are soft caps or sinks. Without
`packed` (generation) this is transformers' own SDPA.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from m3.model.packed_sequences import PackedSequences

PACKED_ATTENTION = "packed"
"""The name to give `set_attn_implementation`."""
STRIP = 1024
"""Queries at a time where scores are written out, which bounds their memory."""
NOT_HONOURED = ("position_bias", "indices", "block_indices")
"""Keywords by which some decoders add to the scores what is not computed here."""


@dataclass(frozen=True)
class Strip:
    """Queries `start:end` of a sequence, which look at its keys `first:end`: as `mask` says, or
    causally without one.
    """

    start: int
    end: int
    first: int
    mask: Bool[Tensor, "queries keys"] | None


@dataclass
class MaskRule:
    """A decoder's mask function, evaluated once per forward for all the layers that share it,
    sequence by sequence.

    local_size: how many places back a query looks at most, where the function has a window or
        chunks.
    is_custom: the function is not made of transformers' own rules (order, window, chunks, packing)
        alone.
    """

    function: Callable[..., Tensor]
    local_size: int | None
    is_custom: bool
    length: int
    batch_size: int
    device: torch.device
    _strips: dict[int, list[Strip]] = field(default_factory=dict)
    _dense: Tensor | None = None

    def dense(self) -> Bool[Tensor, "b 1 l l"]:
        """The whole mask, for rows that come without the places of their sequences."""
        if self._dense is None:
            self._dense = self._evaluate(range(self.length), range(self.length), self.batch_size)
        return self._dense

    def strips(self, start: int, length: int) -> list[Strip]:
        """Steps that compute the sequence that begins at place `start` of a single row."""
        if start not in self._strips:
            self._strips[start] = self._make_strips(start, length)
        return self._strips[start]

    def _make_strips(self, start: int, length: int) -> list[Strip]:
        if not self.is_custom and self.is_causal(start, length):
            return [Strip(0, length, 0, None)]
        reach = length if self.local_size is None or self.is_custom else self.local_size
        size = max(reach, 64)  # a small window would make many small products
        strips = []
        for begin in range(0, length, size):
            end, first = min(begin + size, length), max(0, begin - reach + 1)
            queries, keys = range(start + begin, start + end), range(start + first, start + end)
            strips.append(Strip(begin, end, first, self._evaluate(queries, keys, 1)[0, 0]))
        return strips

    def is_causal(self, start: int, length: int) -> bool:
        """Tell whether the rule is plain order here: the last query sees all, all see the first
        place, and none the next.

        That says enough of rules made of order, a window and chunks, at the cost of the length
        instead of its square.
        """
        places = torch.arange(start, start + length, device=self.device)
        zero = places.new_zeros(())
        sees_next = torch.as_tensor(self.function(zero, zero, places[:-1], places[1:]))
        every, last = range(start, start + length), range(start + length - 1, start + length)
        sees_all = (
            self._evaluate(last, every, 1).all()
            and self._evaluate(every, range(start, start + 1), 1).all()
        )
        return bool(sees_all) and not bool(sees_next.any())

    def _evaluate(
        self, queries: range, keys: range, batch_size: int
    ) -> Bool[Tensor, "b 1 queries keys"]:
        mask = sdpa_mask(
            batch_size,
            len(queries),
            len(keys),
            queries.start,
            keys.start,
            self.function,
            allow_is_causal_skip=False,
            use_vmap=self.is_custom,
            device=self.device,
        )
        assert mask is not None  # it may only be skipped where that is allowed
        return mask


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device,
    **options: Any,
) -> Tensor | MaskRule | None:
    """For transformers' AttentionMaskInterface: a rule where rows are packed, else the mask that
    SDPA takes.
    """
    may_skip = (
        allow_is_causal_skip or allow_is_bidirectional_skip
    )  # neither of packed rows, nor of one token and a static cache
    if attention_mask is None and not may_skip and q_length == kv_length > 1:
        return MaskRule(mask_function, local_size, use_vmap, q_length, batch_size, device)
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        local_size,
        allow_is_causal_skip,
        allow_is_bidirectional_skip,
        use_vmap=use_vmap,
        device=device,
        **options,
    )


@torch.compiler.disable  # the number of sequences and their lengths differ from batch to batch
def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "b h l d"],
    key: Float[Tensor, "b h_kv k d"],
    value: Float[Tensor, "b h_kv k d_value"],
    attention_mask: Tensor | MaskRule | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedSequences | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " h"] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "b l h d_value"], None]:
    """For transformers' AttentionInterface; see the module's docstring.

    Raises:
        ValueError: a decoder that adds to the scores what is not computed here.
    """
    unknown = [name for name in NOT_HONOURED if options.get(name) is not None]
    if unknown:
        raise ValueError(
            f"packed attention does not compute {', '.join(unknown)} of {type(module).__name__}: "
            "set hardware.attention to eager"
        )
    # rotary embeddings leave float32 queries and keys, but not values
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (states.to(dtype) for states in (query, key, value))
    scores = Scores(scaling, dropout, softcap, s_aux)
    if packed is None:
        mask = attention_mask.dense() if isinstance(attention_mask, MaskRule) else attention_mask
        if scores.is_plain:
            return sdpa_attention_forward(
                module, query, key, value, mask, dropout, scaling, **options
            )
        return scores.attend(query, key, value, mask).transpose(1, 2), None
    batch, _, length, _ = query.shape
    # [b * l, heads, d]
    rows = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    window = None
    # that kernel drops nothing out
    if scores.is_plain and not dropout and not isinstance(attention_mask, Tensor):
        window = _varlen_window(
            rows[0], rows[2], attention_mask, packed, options.get("sliding_window")
        )
    joined = (
        _all_at_once(rows, packed, scores, window)
        if window
        else _one_by_one(rows, packed, scores, attention_mask)
    )
    return joined.unflatten(0, (batch, length)), None


def _one_by_one(
    rows: list[Tensor], packed: PackedSequences, scores: "Scores", mask: Tensor | MaskRule | None
) -> Float[Tensor, "places h d_value"]:
    """SDPA of each sequence.

    Splitting and joining have cheap gradients; slices would each make one as long as the row.
    """
    outputs, start = [], 0
    for query, key, value in zip(*(states.split(packed.lengths) for states in rows), strict=True):
        outputs += _attend_sequence(query, key, value, scores, _strips(mask, start, len(query)))
        start += len(query)
    return torch.cat(outputs)


def _strips(mask: Tensor | MaskRule | None, start: int, length: int) -> list[Strip]:
    if isinstance(mask, MaskRule):
        return mask.strips(start, length)
    if mask is None:
        return [Strip(0, length, 0, None)]
    end = start + length
    return [Strip(0, length, 0, mask[0, 0, start:end, start:end])]


def _attend_sequence(
    query: Float[Tensor, "n h d"],
    key: Float[Tensor, "n h_kv d"],
    value: Float[Tensor, "n h_kv d_value"],
    scores: "Scores",
    strips: list[Strip],
) -> list[Float[Tensor, "_ h d_value"]]:
    outputs = []
    for strip, queries in zip(
        strips, query.split([strip.end - strip.start for strip in strips]), strict=True
    ):
        keys, values = key, value
        if strip.first > 0 or strip.end < len(key):
            keys, values = key[strip.first : strip.end], value[strip.first : strip.end]
        q, k, v = (states.transpose(0, 1)[None] for states in (queries, keys, values))
        outputs.append(scores.attend(q, k, v, strip.mask)[0].transpose(0, 1))
    return outputs


@dataclass(frozen=True)
class Scores:
    """Turns scores of queries and keys into weights: scaled, capped, masked, beside a sink,
    dropped out.
    """

    scaling: float | None
    dropout: float
    softcap: float | None
    sinks: Float[Tensor, " h"] | None

    @property
    def is_plain(self) -> bool:
        """Tell whether SDPA computes them."""
        return self.softcap is None and self.sinks is None

    def attend(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h_kv k d"],
        value: Float[Tensor, "b h_kv k d_value"],
        mask: Tensor | None,
    ) -> Float[Tensor, "b h q d_value"]:
        """One call of attention; without a mask, query i looks at the keys up to i, a single
        query at all of them.
        """
        is_causal = mask is None and query.shape[2] > 1
        if self.is_plain:
            is_grouped = query.shape[1] != key.shape[1]
            return scaled_dot_product_attention(
                query,
                key,
                value,
                mask,
                self.dropout,
                is_causal,
                scale=self.scaling,
                enable_gqa=is_grouped,
            )
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        outputs = []
        for number, queries in enumerate(query.split(STRIP, dim=2)):
            start, size = number * STRIP, queries.shape[2]
            end = start + size if is_causal else key.shape[2]
            seen = _allowed(mask, start, size, end)
            weights = self._weights(queries, key[:, :, :end], seen.to(query.device))
            outputs.append(weights @ value[:, :, :end])
        return torch.cat(outputs, dim=2)

    def _weights(
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b h k d"],
        is_seen: Bool[Tensor, "*b q k"],
    ) -> Float[Tensor, "b h q k"]:
        """Written out as in transformers' `eager_attention_forward` of Gemma 2 and gpt-oss, in
        float32.
        """
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        scores = (query @ key.transpose(2, 3)).float() * scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~is_seen, torch.finfo(scores.dtype).min)
        if self.sinks is not None:
            sink = self.sinks.float().view(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., : key.shape[2]].to(query.dtype)
        return nn.functional.dropout(weights, self.dropout) if self.dropout else weights


def _allowed(mask: Tensor | None, start: int, queries: int, keys: int) -> Bool[Tensor, "*b q k"]:
    """Mask of the first `keys` keys for the queries from `start` on; without a mask they end at
    the last query.
    """
    if mask is None:
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return mask[..., start : start + queries, :keys]


def _varlen_window(
    query: Float[Tensor, "places h d"],
    value: Float[Tensor, "places h_kv d_value"],
    mask: MaskRule | None,
    packed: PackedSequences,
    sliding_window: int | None,
) -> tuple[int, int] | None:
    """Window of a query, back and ahead, as `varlen_attn` takes it; None where that kernel cannot
    serve.

    It is flash attention: CUDA from Ampere on, half precision, equal widths up to 256, plain order
        or a sliding window.
    """
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if not (query.is_cuda and is_half and query.shape[-1] == value.shape[-1] <= 256):
        return None
    if (
        torch.cuda.get_device_capability(query.device) < (8, 0)
        or not {"scale", "window_size"} <= _varlen_options()
    ):
        return None
    if mask is None:
        return -1, 0
    if not mask.is_custom and mask.local_size is not None and mask.local_size == sliding_window:
        return mask.local_size - 1, 0
    longest = packed.lengths.index(packed.longest)
    is_plain = not mask.is_custom and mask.is_causal(sum(packed.lengths[:longest]), packed.longest)
    return (-1, 0) if is_plain else None


@cache
def _varlen_options() -> frozenset[str]:
    """Keywords of `varlen_attn` in the torch that is installed: none up to 2.9, `enable_gqa`
    from 2.12 on.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _all_at_once(
    rows: list[Tensor], packed: PackedSequences, scores: "Scores", window: tuple[int, int]
) -> Float[Tensor, "places h d"]:
    """torch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn  # imports CUDA's operators

    query, key, value = rows
    bounds, longest, groups = packed.bounds, packed.longest, query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"scale": scores.scaling, "window_size": window}
    if "enable_gqa" in _varlen_options():
        options["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    assert isinstance(output, Tensor)  # it returns more only where asked to
    return output


def takes_sequences(implementation: str | None) -> bool:
    """Tell whether an attention of transformers computes the sequences that it is told, and
    reads no mask for it.
    """
    return implementation in (
        PACKED_ATTENTION,
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
    )


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, packed_mask)
