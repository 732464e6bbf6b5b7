"""Reading images at a scale: every tile is reduced, then the tiles of an image become its sequence.

in:  the tokens of all tiles `[t, n, d]` in image order, and the `Tiles` of each image;
out: the token sequence of each image, and its count before any pixel is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid, Nesting
from m3.nesting.layouts import TileLayout, Tiles
from m3.nesting.tiling import Tiling

Reduce = Callable[[Tensor, int, Grid], Tensor]
"""A token reducer: (tokens `[t, n, d]`, scale, grid) -> `[t, scale, d]`."""


@dataclass(frozen=True)
class ImageReader:
    """Nesting and layout over the tokens of a tile: turns a scale into tokens or their count."""

    nesting: Nesting
    tiling: Tiling
    grid: Grid

    @property
    def layout(self) -> TileLayout:
        return self.tiling.layout

    def shape(self, scale: int, tile_tokens: int | None) -> Grid:
        """Shape of a tile's tokens at `scale`, or an `UnreachableScaleError`."""
        return self.nesting.shape(self.grid if tile_tokens is None else tile_tokens, scale)

    def count(self, scale: int, tiles: Tiles) -> int:
        """Token count of an image at `scale`: placeholders in text, vectors of `read_images`."""
        return self.layout.count(self.shape(scale, tiles.tokens), tiles)

    def read_images(
        self,
        features: Float[Tensor, "t n d"],
        scale: int,
        image_tiles: Sequence[Tiles],
        row_end: Float[Tensor, " d"] | None,
        reduce: Reduce,
    ) -> list[Float[Tensor, "_ d"]]:
        """Token sequence of each image at `scale`, from the tokens of all tiles in image order.

        `features` may be padded where the tokens of tiles vary; tokens after `Tiles.tokens` are
        never read.
        """
        sequences: list[Tensor] = []
        first_tile = 0
        for tile_tokens, tile_group in _group_tiles(image_tiles):
            next_tile = first_tile + sum(tiles.number for tiles in tile_group)
            grid = self.grid if tile_tokens is None else tile_tokens
            reduced_tokens = reduce(features[first_tile:next_tile, :tile_tokens], scale, grid)
            token_grid = self.shape(scale, tile_tokens)
            group_tokens = reduced_tokens.split([tiles.number for tiles in tile_group])
            sequences += [
                self.layout.assemble(image_tokens, token_grid, tiles, row_end)
                for image_tokens, tiles in zip(group_tokens, tile_group, strict=True)
            ]
            first_tile = next_tile
        return sequences


def _group_tiles(image_tiles: Sequence[Tiles]) -> list[tuple[int | None, list[Tiles]]]:
    """Group neighbours with equal tokens per tile, so that they are reduced together."""
    tile_runs: list[tuple[int | None, list[Tiles]]] = []
    for tiles in image_tiles:
        if tile_runs and tile_runs[-1][0] == tiles.tokens:
            tile_runs[-1][1].append(tiles)
        else:
            tile_runs.append((tiles.tokens, [tiles]))
    return tile_runs
