"""Logits to the next token of each row: greedily, or drawn from the likeliest (nucleus sampling,
arXiv:1904.09751).

In: logits of all rows and how each is to be decoded. Out: one token per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from m3.inference import Generation


@dataclass(frozen=True)
class Choice:
    """Sampling settings of a row. `random` draws its numbers, where it draws."""

    generation: Generation
    random: torch.Generator

    @classmethod
    def make(cls, generation: Generation, seed: int | None) -> "Choice":
        random = torch.Generator()  # on the CPU, so that a seed means the same everywhere
        if seed is None:
            random.seed()
        else:
            random.manual_seed(seed)
        return cls(generation, random)


def choose(logits: Float[Tensor, "rows vocab"], choices: Sequence[Choice]) -> Int[Tensor, " rows"]:
    """The next token of each row."""
    tokens = logits.argmax(-1)
    for row_index, choice in enumerate(choices):
        if choice.generation.temperature > 0:
            tokens[row_index] = _draw(logits[row_index : row_index + 1].cpu(), choice)
    return tokens


def _draw(logits: Float[Tensor, "1 vocab"], choice: Choice) -> int:
    ids = torch.zeros(1, 0, dtype=torch.long)  # the warpers do not look at them
    # so that the smallest temperature, too, divides 0 and numbers below
    logits = (logits - logits.max()).double()
    scores = TemperatureLogitsWarper(choice.generation.temperature)(ids, logits)  # pyright: ignore[reportArgumentType]
    if choice.generation.top_p < 1:
        scores = TopPLogitsWarper(choice.generation.top_p)(ids, scores)  # pyright: ignore[reportArgumentType]
    return int(torch.multinomial(scores.softmax(-1), 1, generator=choice.random))
