"""Ways to give an image `m` visual tokens without training for it: the controls that a trained
ladder has to beat.

In:  the tokens that the connector gave for a tile `[n, d]`, their grid, and the scale m.
Out: the m tokens that the decoder reads `[m, d]`.

A row of `METHODS` (methods.py) is what `m3 sweep --methods` takes; answers are stored under its
name. Three kinds:

    Choice      picks or averages tokens that the tower has made              (most rows)
    pixels      the tower sees fewer pixels                                   (low_resolution.py)
    decoder     the decoder reads all tokens and drops some on its way        (fastv.py)

Chosen tokens reach the decoder the way all tokens do: `ChosenTokenReducer` stands in for the model's own
reducer while a batch of them is answered. So a method works with every decoder, connector, tiling
and scale, and touches no model code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from m3.digest import digest
from m3.model.reducers import TokenReducer
from m3.nesting import Grid, GridPool, pool_grid


class Choice(ABC):
    """`m` tokens from those of one tile."""

    @abstractmethod
    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        """`scale` tokens, in reading order.

        `image`: a digest of the picture, for choices that need a seed.

        Raises:
            ValueError: the method needs tokens on a grid, or cannot reach the scale.
        """


class Pooling(Choice):
    """Means of square cells, as M3 trains on; to weights that never saw them they are plain
    pooling.
    """

    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        return pool_grid(tokens, scale, rectangle(grid, "pooling"))


class UniformSampling(Choice):
    """The token in the middle of each cell that pooling would average (spatial sampling of M3,
    table 4).
    """

    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        rows, columns = rectangle(grid, "uniform")
        down, across = GridPool().shape((rows, columns), scale)
        cell_height, cell_width = rows // down, columns // across
        y, x = (
            torch.arange(down) * cell_height + cell_height // 2,
            torch.arange(across) * cell_width + cell_width // 2,
        )
        return tokens[(y[:, None] * columns + x).flatten().to(tokens.device)]


@dataclass(frozen=True)
class RandomTokens(Choice):
    """Tokens drawn without replacement; the draw depends on the seed, the picture and the scale
    alone.
    """

    seed: int = 0

    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        generator = torch.Generator().manual_seed(int(digest([self.seed, image, scale])[:12], 16))
        drawn = torch.randperm(len(tokens), generator=generator)[:scale].sort().values
        return tokens[drawn.to(tokens.device)]


class DivPrune(Choice):
    """The set whose closest two tokens are farthest apart, greedily (max-min diversity, cosine
    distance).
    """

    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        distance = 1 - similarity(tokens)
        first_index = int(distance.fill_diagonal_(torch.inf).min(1).values.argmax())
        nearest, chosen_indices = distance[first_index].clone(), [first_index]
        nearest[first_index] = -torch.inf
        while len(chosen_indices) < scale:
            chosen_indices.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, distance[chosen_indices[-1]])
            nearest[chosen_indices] = -torch.inf
        return tokens[in_order(chosen_indices, tokens)]


class Coverage(Choice):
    """The set that resembles all tokens best: greedy maximum of sum_j max_i similarity(j, i)
    over chosen i.
    """

    def choose(
        self, tokens: Float[Tensor, "n d"], scale: int, grid: Grid, image: str
    ) -> Float[Tensor, "m d"]:
        alike = similarity(tokens)
        covered, chosen_indices = torch.full_like(alike[0], -1.0), []
        while len(chosen_indices) < scale:
            gain = (torch.maximum(alike, covered) - covered).sum(1)
            gain[chosen_indices] = -torch.inf
            chosen_indices.append(int(gain.argmax()))
            covered = torch.maximum(covered, alike[chosen_indices[-1]])
        return tokens[in_order(chosen_indices, tokens)]


CHOICES: Mapping[str, Choice] = {
    "pooling": Pooling(),
    "uniform": UniformSampling(),
    "random": RandomTokens(0),
    "random_1": RandomTokens(1),
    "divprune": DivPrune(),
    "coverage": Coverage(),
}
"""By method; the model's own nesting, the tower or the decoder does the others."""


class ChosenTokenReducer(TokenReducer):
    """The reducer of tokens that a method has chosen already: the first `scale` of each tile."""

    def reduce(
        self, tokens: Float[Tensor, "t n d"], scale: int, grid: Grid
    ) -> Float[Tensor, "t {scale} d"]:
        return tokens[:, :scale]


def chosen_tokens(
    tiles: Float[Tensor, "t n d"], method: str, scale: int, grid: Grid, image: str
) -> Float[Tensor, "t {scale} d"]:
    """Each tile's tokens after the method's choice; for the rows that have a choice."""
    return torch.stack([CHOICES[method].choose(tile, scale, grid, image) for tile in tiles])


def rectangle(grid: Grid, method: str) -> tuple[int, int]:
    """(rows, columns), where tokens stand on a grid."""
    if not isinstance(grid, tuple):
        raise ValueError(
            f"{method} needs tokens that stand on a grid, but this model's are an ordered list of "
            f"{grid} (learned queries). "
            "Leave it out of --methods"
        )
    return grid


def similarity(tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Cosines, in float32: bfloat16 would tie many of them."""
    unit = normalize(tokens.float(), dim=-1)
    return unit @ unit.T


def in_order(chosen_indices: list[int], tokens: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
    return torch.tensor(sorted(chosen_indices), device=tokens.device)
