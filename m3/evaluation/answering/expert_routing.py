"""Expert routing of prompts: which experts their tokens choose and how undecided the routers are,
per scale.

In: the routers' logits over a prompt, recorded while it is read (no second pass). Out: `Routing`,
counts and sums that add up over documents, apart for visual tokens and text, layer by layer; and
what is read off them:

    load          f_e: share of the tokens' choices, k each, that fall on expert e; sums to 1
                  (Switch Transformer, https://arxiv.org/abs/2101.03961, equation 5, with k choices;
                  m3/model/router_losses.py)
    busiest       E max_e f_e: the busiest expert's load over a fair share; 1 is balanced, E / k the most. It is 1 + MaxVio of
                  https://arxiv.org/abs/2408.15664
    spread        entropy of the load, - sum_e f_e ln f_e / ln E; 1 is balanced
    entropy       mean over tokens of - sum_e p_e ln p_e / ln E, p: softmax over all experts; 0 is decided, 1 has no preference
                  (the local entropy of LIMoE, https://arxiv.org/abs/2206.02770, section 2.2, over
                  ln E)

The tokens are those of the prompt; generated ones are not counted. A choice is one of the k largest
logits.
"""

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m3.model import M3ForConditionalGeneration

TOKENS = ("visual", "text")
"""The two kinds of a prompt's tokens, in the order of the arrays' first axis."""
DOCUMENTS = 256
"""Of a task's documents so many, evenly spaced, are recorded: what is stored stays small,
whatever the benchmark's size.
"""


@dataclass(frozen=True)
class Routing:
    """Counts of one prompt, or added up over several."""

    choices: Int[np.ndarray, "2 layers experts"]  # tokens that chose an expert
    entropy: Float[np.ndarray, "2 layers"]  # nats, summed over tokens
    tokens: Int[np.ndarray, " 2"]

    def __add__(self, other_routing: "Routing") -> "Routing":
        return Routing(
            self.choices + other_routing.choices,
            self.entropy + other_routing.entropy,
            self.tokens + other_routing.tokens,
        )

    @property
    def experts(self) -> int:
        return self.choices.shape[-1]

    def load(self, token_kind: int) -> Float[np.ndarray, "layers experts"]:
        """f of each layer for the visual (0) or the text tokens (1); nan where there is no such
        token.
        """
        total_choices = self.choices[token_kind].sum(-1, keepdims=True)
        return np.divide(
            self.choices[token_kind],
            total_choices,
            out=np.full(self.choices[token_kind].shape, math.nan),
            where=total_choices > 0,
        )

    def busiest(self, token_kind: int) -> Float[np.ndarray, " layers"]:
        return self.experts * self.load(token_kind).max(-1)

    def spread(self, token_kind: int) -> Float[np.ndarray, " layers"]:
        load = self.load(token_kind)
        return -(load * np.log(np.where(load == 0, 1.0, load))).sum(-1) / math.log(self.experts)

    def undecided(self, token_kind: int) -> Float[np.ndarray, " layers"]:
        """The entropy of the module docstring."""
        token_count = self.tokens[token_kind] if self.tokens[token_kind] else math.nan
        return self.entropy[token_kind] / (token_count * math.log(self.experts))

    def encoded(self) -> str:
        """For a line of the store."""
        shape = np.asarray(self.choices.shape[1:], dtype="<u4")
        encoded_parts = (
            shape,
            self.tokens.astype("<u4"),
            self.choices.astype("<u4"),
            self.entropy.astype("<f4"),
        )
        return base64.b85encode(
            zlib.compress(b"".join(encoded_part.tobytes() for encoded_part in encoded_parts))
        ).decode()

    @classmethod
    def decoded(cls, encoded_text: str) -> "Routing":
        raw_bytes = zlib.decompress(base64.b85decode(encoded_text))
        layers, experts, *tokens = (
            int(header_number) for header_number in np.frombuffer(raw_bytes, "<u4", 4)
        )
        choice_counts = np.frombuffer(raw_bytes, "<u4", 2 * layers * experts, 16).reshape(
            2, layers, experts
        )
        entropy = np.frombuffer(raw_bytes, "<f4", 2 * layers, 16 + choice_counts.nbytes).reshape(
            2, layers
        )
        return cls(
            choice_counts.astype(np.int64),
            entropy.astype(np.float64),
            np.asarray(tokens, dtype=np.int64),
        )


def count(
    logits: Sequence[Float[Tensor, "b l experts"]], is_kind: Bool[Tensor, "2 b l"], top_k: int
) -> list[Routing]:
    """One `Routing` per row, from the logits of each layer; `is_kind`: which tokens are visual,
    and which text.
    """
    masks = is_kind.float()
    layer_choices, entropy = [], []
    for of_layer in logits:
        of_layer = of_layer.float()
        chosen_experts = torch.zeros_like(of_layer).scatter(
            -1, of_layer.topk(top_k, dim=-1).indices, 1.0
        )
        log_p = of_layer.log_softmax(-1)
        layer_choices.append(torch.einsum("kbl,ble->bke", masks, chosen_experts))
        entropy.append(torch.einsum("kbl,bl->bk", masks, -(log_p.exp() * log_p).sum(-1)))
    choice_counts = torch.stack(layer_choices, dim=2).round().long().cpu().numpy()
    sums = torch.stack(entropy, dim=2).double().cpu().numpy()
    tokens = is_kind.sum(-1).T.cpu().numpy()
    return [Routing(*row_parts) for row_parts in zip(choice_counts, sums, tokens, strict=True)]


@dataclass
class Recorded:
    """The routers' logits over a batch of prompts, once its first pass is done."""

    logits: list[Tensor]
    rows: int

    def routings(self, is_kind: Bool[Tensor, "2 b l"], top_k: int) -> list[Routing]:
        # rows repeated for beams are alike; each row's first one counts
        row_logits = [
            layer_logits.unflatten(0, (self.rows, -1, is_kind.shape[-1]))[:, 0]
            for layer_logits in self.logits
        ]
        return count(row_logits, is_kind, top_k)


@contextmanager
def recording(model: M3ForConditionalGeneration, row_count: int) -> Iterator[Recorded]:
    """Keeps what the routers say the first time each of them runs while the block runs: to the
    prompts.

    Changes nothing.
    """
    recorded_logits: dict[int, Tensor] = {}

    def keep(layer: int, _: nn.Module, __: Any, output: Any) -> None:
        if layer not in recorded_logits:
            logits = output[0] if isinstance(output, tuple) else output
            recorded_logits[layer] = logits.detach().flatten(0, -2)

    hooks = [
        router.register_forward_hook(partial(keep, layer))
        for layer, router in enumerate(model.model.routers)
    ]
    recorded = Recorded([], row_count)
    try:
        yield recorded
    finally:
        for forward_hook in hooks:
            forward_hook.remove()
    recorded.logits += [recorded_logits[layer] for layer in sorted(recorded_logits)]


def is_recorded(doc_id: int, documents: int) -> bool:
    """Tell whether a document is one of the evenly spaced ones, at most `DOCUMENTS`."""
    return doc_id % math.ceil(documents / DOCUMENTS) == 0
