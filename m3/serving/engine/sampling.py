"""Logits to the next token of each row: greedily, or drawn from the likeliest (nucleus sampling,
arXiv:1904.09751).

In: logits of all rows and how each is to be decoded. Out: one token per row, and the
log-probabilities of those rows whose clients asked for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from m3.inference import Generation
from m3.serving.engine.grammar import Guide
from m3.serving.engine.requests import Request


@dataclass(frozen=True)
class Choice:
    """Sampling settings of a row.

    `random` draws its numbers, where it draws; `guide`: of the form of its answer; `top_count`: of
    the likeliest tokens that are told with each, None: no log-probabilities are.
    """

    generation: Generation
    random: torch.Generator
    guide: Guide | None = None
    top_count: int | None = None

    @classmethod
    def make(cls, request: Request, index: int = 0, guide: Guide | None = None) -> "Choice":
        """Settings of the answer number `index` of a request."""
        random = torch.Generator()  # on the CPU, so that a seed means the same everywhere
        if request.seed is None:
            random.seed()
        else:
            random.manual_seed(request.seed + index)
        return cls(request.generation, random, guide, request.top_count)


def choose(logits: Float[Tensor, "rows vocab"], choices: Sequence[Choice]) -> Int[Tensor, " rows"]:
    """The next token of each row; its guide is told of it by whoever takes it."""
    logits = _guided(logits, choices)
    tokens = logits.argmax(-1)
    for row_index, choice in enumerate(choices):
        if choice.generation.temperature > 0:
            tokens[row_index] = _draw(logits[row_index : row_index + 1].cpu(), choice)
    return tokens


def _guided(
    logits: Float[Tensor, "rows vocab"], choices: Sequence[Choice]
) -> Float[Tensor, "rows vocab"]:
    """The logits, without the tokens that the form of a row's answer does not allow; other rows are
    not touched.
    """
    guides = {row: choice.guide for row, choice in enumerate(choices) if choice.guide is not None}
    if not guides:
        return logits
    logits = logits.clone()
    for row, guide in guides.items():
        allowed = guide.allowed(logits.shape[1]).to(logits.device)
        logits[row].masked_fill_(~allowed, -torch.inf)
    return logits


@dataclass(frozen=True)
class TokenRanks:
    """Log-probabilities by token id: of the token that was chosen, and of the likeliest."""

    written: tuple[int, float]
    likeliest: tuple[tuple[int, float], ...]


def rank(
    logits: Float[Tensor, "rows vocab"], tokens: Sequence[int], choices: Sequence[Choice]
) -> list[TokenRanks | None]:
    """Log-probabilities of the model's own distribution, for the rows that tell them."""
    ranks: list[TokenRanks | None] = []
    for row, (token, choice) in enumerate(zip(tokens, choices, strict=True)):
        if choice.top_count is None:
            ranks.append(None)
            continue
        log_probabilities = logits[row].float().log_softmax(-1)
        values, ids = log_probabilities.topk(min(choice.top_count, logits.shape[1]))
        likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        ranks.append(TokenRanks((token, float(log_probabilities[token])), likeliest))
    return ranks


def _draw(logits: Float[Tensor, "1 vocab"], choice: Choice) -> int:
    ids = torch.zeros(1, 0, dtype=torch.long)  # the warpers do not look at them
    # so that the smallest temperature, too, divides 0 and numbers below
    logits = (logits - logits.max()).double()
    scores = TemperatureLogitsWarper(choice.generation.temperature)(ids, logits)  # pyright: ignore[reportArgumentType]
    if choice.generation.top_p < 1:
        scores = TopPLogitsWarper(choice.generation.top_p)(ids, scores)  # pyright: ignore[reportArgumentType]
    return int(torch.multinomial(scores.softmax(-1), 1, generator=choice.random))
