"""Layouts: the tokens of an image's tiles, each reduced to the scale, become one sequence.

in:  the reduced tokens of an image's tiles `[t, m, d]`, m being the scale, and its `Tiles`;
out: its token sequence `[count, d]`, and `count` before any pixel is read: placeholders and tokens
    follow from the same arithmetic.

    OneTile        one tile                                                        count = m
    Concatenated   tiles one after the other                                       count = t m
    PictureRows    the whole image, then the picture of rows x columns of tiles without its padding,
                   each row followed by one learned vector (LLaVA-NeXT, "spatial_unpad",
                   https://llava-vl.github.io/blog/2024-01-30-llava-next/; pooled per tile: M3,
                   https://arxiv.org/abs/2405.17430, section 4.1)

A square image as 2 x 2 tiles after the whole image has 2928, 744, 192, 51 or 7 tokens at 576, 144,
36, 9 or 1. Sizes and grids are (height, width) and (rows, columns) throughout.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiles:
    """Tile count of an image, its original size in pixels, tokens per tile if they vary, and the
    resolution it is seen at (None: the largest).
    """

    number: int = 1
    size: Size | None = None
    tokens: int | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        if self.number < 1 or (self.size is not None and min(self.size) < 1):
            raise ValueError(f"an image has at least 1 tile of at least 1 x 1 pixels, got {self}")


class TileLayout(ABC):
    """Order of the tokens; `token_grid` is the shape of the tokens of a reduced tile."""

    has_one_tile = False
    """Every image is one tile."""
    needs_size = False
    """The size of an image in pixels changes its tokens."""
    has_newline = False
    """A learned vector ends each row."""

    @abstractmethod
    def count(self, token_grid: Grid, tiles: Tiles) -> int:
        """Token count of `assemble`; a `ValueError` if `tiles` is incomplete or contradictory."""

    @abstractmethod
    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        token_grid: Grid,
        tiles: Tiles,
        row_end: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        """Token sequence of one image. Differentiable."""

    def padding(self, token_grid: Grid, tiles: Tiles) -> Size:
        """(rows, columns) of tokens omitted on each side of the cut picture, which are padding."""
        return 0, 0


class OneTile(TileLayout):
    """One tile, unchanged."""

    has_one_tile = True

    def count(self, token_grid: Grid, tiles: Tiles) -> int:
        if tiles.number != 1:
            raise ValueError(
                f"tiling single takes one tile per image, but an image has {tiles.number} tiles"
            )
        return _token_count(token_grid)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        token_grid: Grid,
        tiles: Tiles,
        row_end: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        self.count(token_grid, tiles)
        return tokens[0]


class Concatenated(TileLayout):
    """Tiles one after the other (Aria; InternVL; LLaVA-NeXT's patch merge `flat`)."""

    def count(self, token_grid: Grid, tiles: Tiles) -> int:
        return tiles.number * _token_count(token_grid)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        token_grid: Grid,
        tiles: Tiles,
        row_end: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        return tokens.flatten(0, 1)


class PictureRows(TileLayout):
    """Whole image, then its tiles as one picture without padding, `row_end` after each row.

    Of an image that is seen as a whole alone: its tokens and one `row_end`, as in LLaVA-NeXT.
    """

    needs_size = True
    has_newline = True

    def __init__(
        self, cut_grid: Callable[[Size, int | None], Size], round_tokens: Callable[[float], int]
    ) -> None:
        """`cut_grid`: (rows, columns) of tiles that an image of a size is cut into at a
        resolution, the whole image not counted. `round_tokens`: a length in tokens to a whole
        number.
        """
        self.cut_grid = cut_grid
        self.round_tokens = round_tokens

    def count(self, token_grid: Grid, tiles: Tiles) -> int:
        (rows, columns), (pad_rows, pad_columns) = self._picture_grid(token_grid, tiles)
        if tiles.number == 1:
            return _token_count(token_grid) + 1
        return _token_count(token_grid) + (rows - 2 * pad_rows) * (columns - 2 * pad_columns + 1)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        token_grid: Grid,
        tiles: Tiles,
        row_end: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        (rows, columns), (pad_rows, pad_columns) = self._picture_grid(token_grid, tiles)
        # the model has a row end; `_picture_grid` refuses other shapes
        assert row_end is not None and isinstance(token_grid, tuple)
        if tiles.number == 1:
            return torch.cat([tokens[0], row_end.to(tokens.dtype)[None]])
        (r, c), tile_columns = token_grid, columns // token_grid[1]
        picture = rearrange(tokens[1:], "(y x) (r c) d -> (y r) (x c) d", x=tile_columns, r=r, c=c)
        picture = picture[pad_rows : rows - pad_rows, pad_columns : columns - pad_columns]
        row_ends = repeat(row_end.to(picture.dtype), "d -> rows 1 d", rows=len(picture))
        return torch.cat([tokens[0], torch.cat([picture, row_ends], dim=1).flatten(0, 1)])

    def padding(self, token_grid: Grid, tiles: Tiles) -> Size:
        return self._picture_grid(token_grid, tiles)[1]

    def _picture_grid(self, token_grid: Grid, tiles: Tiles) -> tuple[Size, Size]:
        """(rows, columns) of tokens of the cut picture, and of its padding on each side."""
        if not isinstance(token_grid, tuple):
            raise ValueError(
                "tiling anyres puts tiles side by side, so their tokens must stand on a grid: use "
                "the nesting grid_pool, or tiling tiles"
            )
        if tiles.size is None:
            raise ValueError(
                "tiling anyres needs the size of each image in pixels: image_sizes, (height, width)"
            )
        cut_rows, cut_columns = self.cut_grid(tiles.size, tiles.resolution)
        if tiles.number != 1 + cut_rows * cut_columns:
            raise ValueError(
                f"an image of {tiles.size[0]} x {tiles.size[1]} pixels has 1 + {cut_rows} x "
                f"{cut_columns} tiles by grid_pinpoints, but image_tiles says {tiles.number}"
            )
        if tiles.number == 1:
            return (0, 0), (0, 0)
        rows, columns = cut_rows * token_grid[0], cut_columns * token_grid[1]
        height, width = tiles.size
        if width / height > columns / rows:  # the image was wider: padding above and below
            picture_rows = self.round_tokens(height * (columns / width))
            return (rows, columns), ((rows - picture_rows) // 2, 0)
        picture_columns = self.round_tokens(width * (rows / height))
        return (rows, columns), (0, (columns - picture_columns) // 2)


def _token_count(token_grid: Grid) -> int:
    return token_grid[0] * token_grid[1] if isinstance(token_grid, tuple) else token_grid
