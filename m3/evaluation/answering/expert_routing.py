"""How a mixture of experts reads a prompt: which experts its tokens choose and how undecided the
routers are, per scale.

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
    """Of one prompt, or added up over several."""

    choices: Int[np.ndarray, "2 layers experts"]  # tokens that chose an expert
    entropy: Float[np.ndarray, "2 layers"]  # nats, summed over tokens
    tokens: Int[np.ndarray, " 2"]

    def __add__(self, other: "Routing") -> "Routing":
        return Routing(
            self.choices + other.choices, self.entropy + other.entropy, self.tokens + other.tokens
        )

    @property
    def experts(self) -> int:
        return self.choices.shape[-1]

    def load(self, kind: int) -> Float[np.ndarray, "layers experts"]:
        """f of each layer for the visual (0) or the text tokens (1); nan where there is no such
        token.
        """
        total = self.choices[kind].sum(-1, keepdims=True)
        return np.divide(
            self.choices[kind],
            total,
            out=np.full(self.choices[kind].shape, math.nan),
            where=total > 0,
        )

    def busiest(self, kind: int) -> Float[np.ndarray, " layers"]:
        return self.experts * self.load(kind).max(-1)

    def spread(self, kind: int) -> Float[np.ndarray, " layers"]:
        load = self.load(kind)
        return -(load * np.log(np.where(load == 0, 1.0, load))).sum(-1) / math.log(self.experts)

    def undecided(self, kind: int) -> Float[np.ndarray, " layers"]:
        """The entropy of the module docstring."""
        number = self.tokens[kind] if self.tokens[kind] else math.nan
        return self.entropy[kind] / (number * math.log(self.experts))

    def encoded(self) -> str:
        """For a line of the store."""
        shape = np.asarray(self.choices.shape[1:], dtype="<u4")
        parts = (
            shape,
            self.tokens.astype("<u4"),
            self.choices.astype("<u4"),
            self.entropy.astype("<f4"),
        )
        return base64.b85encode(zlib.compress(b"".join(part.tobytes() for part in parts))).decode()

    @classmethod
    def decoded(cls, text: str) -> "Routing":
        content = zlib.decompress(base64.b85decode(text))
        layers, experts, *tokens = (int(number) for number in np.frombuffer(content, "<u4", 4))
        choices = np.frombuffer(content, "<u4", 2 * layers * experts, 16).reshape(
            2, layers, experts
        )
        entropy = np.frombuffer(content, "<f4", 2 * layers, 16 + choices.nbytes).reshape(2, layers)
        return cls(
            choices.astype(np.int64), entropy.astype(np.float64), np.asarray(tokens, dtype=np.int64)
        )


def count(
    logits: Sequence[Float[Tensor, "b l experts"]], is_kind: Bool[Tensor, "2 b l"], top_k: int
) -> list[Routing]:
    """One `Routing` per row, from the logits of each layer; `is_kind`: which tokens are visual,
    and which text.
    """
    masks = is_kind.float()
    choices, entropy = [], []
    for of_layer in logits:
        of_layer = of_layer.float()
        chosen = torch.zeros_like(of_layer).scatter(-1, of_layer.topk(top_k, dim=-1).indices, 1.0)
        log_p = of_layer.log_softmax(-1)
        choices.append(torch.einsum("kbl,ble->bke", masks, chosen))
        entropy.append(torch.einsum("kbl,bl->bk", masks, -(log_p.exp() * log_p).sum(-1)))
    found = torch.stack(choices, dim=2).round().long().cpu().numpy()
    sums = torch.stack(entropy, dim=2).double().cpu().numpy()
    tokens = is_kind.sum(-1).T.cpu().numpy()
    return [Routing(*parts) for parts in zip(found, sums, tokens, strict=True)]


@dataclass
class Recorded:
    """The routers' logits over a batch of prompts, once its first pass is done."""

    logits: list[Tensor]
    rows: int

    def routings(self, is_kind: Bool[Tensor, "2 b l"], top_k: int) -> list[Routing]:
        # rows repeated for beams are alike; each row's first one counts
        apart = [one.unflatten(0, (self.rows, -1, is_kind.shape[-1]))[:, 0] for one in self.logits]
        return count(apart, is_kind, top_k)


@contextmanager
def recording(model: M3ForConditionalGeneration, rows: int) -> Iterator[Recorded]:
    """Keeps what the routers say the first time each of them runs while the block runs: to the
    prompts.

    Changes nothing.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int, _: nn.Module, __: Any, output: Any) -> None:
        if layer not in found:
            logits = output[0] if isinstance(output, tuple) else output
            found[layer] = logits.detach().flatten(0, -2)

    hooks = [
        router.register_forward_hook(partial(keep, layer))
        for layer, router in enumerate(model.model.routers)
    ]
    recorded = Recorded([], rows)
    try:
        yield recorded
    finally:
        for one in hooks:
            one.remove()
    recorded.logits += [found[layer] for layer in sorted(found)]


def is_recorded(doc_id: int, documents: int) -> bool:
    """Whether a document is one of the evenly spaced ones, at most `DOCUMENTS`."""
    return doc_id % math.ceil(documents / DOCUMENTS) == 0
