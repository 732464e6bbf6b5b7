"""Tile layouts: the tokens of an image's tiles, each reduced to the scale, become one sequence.

in:  the reduced tokens of an image's tiles `[t, m, d]`, m being the scale, and its `Tiles`;
out: its token sequence `[count, d]`, and `count` before any pixel is read: placeholders and tokens
    follow from the same arithmetic.

    single   one tile                                                              count = m
    tiles    tiles one after the other                                             count = t m
    anyres   the whole image, then the picture of rows x columns of tiles without its padding,
             each row followed by one learned vector (LLaVA-NeXT, "spatial_unpad",
             https://llava-vl.github.io/blog/2024-01-30-llava-next/; pooled per tile: M3,
             https://arxiv.org/abs/2405.17430, section 4.1)

A square image as 2 x 2 tiles after the whole image has 2928, 744, 192, 51 or 7 tokens at 576, 144,
36, 9 or 1. Sizes and grids are (height, width) and (rows, columns) throughout.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from m3.nesting.base import Grid, Nesting

Size = tuple[int, int]
Reduce = Callable[[Tensor, int, Grid], Tensor]
"""A token reducer: (tokens `[t, n, d]`, scale, grid) -> `[t, scale, d]`."""
UNPAD_ROUNDINGS = ("truncate", "seven_digits")


@dataclass(frozen=True)
class Tiles:
    """Tile count of an image, its original size in pixels, and tokens per tile if they vary."""

    number: int = 1
    size: Size | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.number < 1 or (self.size is not None and min(self.size) < 1):
            raise ValueError(f"an image has at least 1 tile of at least 1 x 1 pixels, got {self}")


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Cutting of images into tiles, and the layout of their tokens.

    `kind`: a row of `LAYOUTS`. `tile_size`: side of a tile in pixels. `grid_pinpoints`: the
    (height, width) to which images may be enlarged and cut into tiles, in order of preference;
    empty: images are not cut. `unpad_rounding`: rounding of the image's height (or width) in
    tokens for `anyres`: `truncate` (LLaVA-NeXT's code) or `seven_digits` (transformers: rounded to
    7 decimals first, so 31.999999999999996 is 32).
    """

    kind: str = "single"
    tile_size: int | None = None
    grid_pinpoints: Sequence[Sequence[int]] = ()
    unpad_rounding: str = "truncate"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "grid_pinpoints", tuple((int(h), int(w)) for h, w in self.grid_pinpoints)
        )
        if self.kind not in LAYOUTS:
            raise ValueError(f"unknown tiling kind {self.kind!r}; known: {', '.join(LAYOUTS)}")
        if self.unpad_rounding not in UNPAD_ROUNDINGS:
            raise ValueError(
                f"unknown unpad_rounding {self.unpad_rounding!r}; known: "
                f"{', '.join(UNPAD_ROUNDINGS)}"
            )
        if self.grid_pinpoints and self.kind == "single":
            raise ValueError(
                "tiling single has one tile per image, so grid_pinpoints must be empty; use anyres "
                "or tiles"
            )
        if self.kind == "anyres" and not self.grid_pinpoints:
            raise ValueError(
                "tiling anyres needs grid_pinpoints: the [height, width] that images "
                "may be enlarged to"
            )
        tile_side = self.tile_size
        if self.grid_pinpoints and (
            tile_side is None or any(h % tile_side or w % tile_side for h, w in self.grid_pinpoints)
        ):
            raise ValueError(
                f"grid_pinpoints {list(self.grid_pinpoints)} must be multiples of tile_size, which "
                f"is {tile_side}"
            )

    def to_dict(self) -> dict:
        """Plain values for a JSON file; `TilingConfig(**...)` of them is equal."""
        return asdict(self) | {
            "grid_pinpoints": [list(pinpoint) for pinpoint in self.grid_pinpoints]
        }

    def resolution(self, image_size: Size) -> Size:
        """First of the pinpoints that keep most of an image's pixels and waste least.

        (`select_best_resolution` of LLaVA-NeXT, `llava/mm_utils.py`.)
        """
        height, width = image_size

        def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
            ratio = min(pinpoint[1] / width, pinpoint[0] / height)
            shown_pixels = min(int(width * ratio) * int(height * ratio), width * height)
            return shown_pixels, shown_pixels - pinpoint[0] * pinpoint[1]

        best_height, best_width = max(self.grid_pinpoints, key=merit)
        return best_height, best_width

    def tile_grid(self, image_size: Size) -> Grid:
        """(rows, columns) of tiles that an image is cut into, the whole image not counted."""
        assert self.tile_size is not None  # `__post_init__` requires it with pinpoints
        height, width = self.resolution(image_size)
        return height // self.tile_size, width // self.tile_size

    def tiles(self, image_size: Size) -> Tiles:
        """Tiles of an image: the whole image, and with pinpoints the tiles that it is cut into."""
        if not self.grid_pinpoints:
            return Tiles(size=image_size)
        cut_grid = self.tile_grid(image_size)
        assert isinstance(cut_grid, tuple)
        return Tiles(1 + cut_grid[0] * cut_grid[1], image_size)

    def largest(self) -> Tiles:
        """Tiles of an image as large as the largest pinpoint, which has most of them."""
        if not self.grid_pinpoints:
            return Tiles()
        height, width = max(self.grid_pinpoints, key=lambda pinpoint: pinpoint[0] * pinpoint[1])
        return self.tiles((height, width))


class TileLayout(ABC):
    """A row of `LAYOUTS`; `token_grid` is the shape of the tokens of a reduced tile."""

    needs_size = False
    """The size of an image in pixels changes its tokens."""
    has_newline = False
    """A learned vector ends each row."""

    def __init__(self, tiling: TilingConfig) -> None:
        self.tiling = tiling

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


class Single(TileLayout):
    """One tile, unchanged."""

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
    """Tiles one after the other (Aria; LLaVA-NeXT's patch merge `flat`)."""

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


class AnyRes(TileLayout):
    """Whole image, then its tiles as one picture without padding, `row_end` after each row."""

    needs_size = True
    has_newline = True

    def count(self, token_grid: Grid, tiles: Tiles) -> int:
        (rows, columns), (pad_rows, pad_columns) = self._picture_grid(token_grid, tiles)
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
        cut_grid = self.tiling.tile_grid(tiles.size)
        assert isinstance(cut_grid, tuple)
        if tiles.number != 1 + cut_grid[0] * cut_grid[1]:
            raise ValueError(
                f"an image of {tiles.size[0]} x {tiles.size[1]} pixels has 1 + {cut_grid[0]} x "
                f"{cut_grid[1]} tiles by grid_pinpoints, but image_tiles says {tiles.number}"
            )
        rows, columns = cut_grid[0] * token_grid[0], cut_grid[1] * token_grid[1]
        height, width = tiles.size
        if width / height > columns / rows:  # the image was wider: padding above and below
            picture_rows = self._round_tokens(height * (columns / width))
            return (rows, columns), ((rows - picture_rows) // 2, 0)
        picture_columns = self._round_tokens(width * (rows / height))
        return (rows, columns), (0, (columns - picture_columns) // 2)

    def _round_tokens(self, length: float) -> int:
        """Round as one of the published codes, which differ by one token just below an integer."""
        return int(length if self.tiling.unpad_rounding == "truncate" else round(length, 7))


LAYOUTS: dict[str, type[TileLayout]] = {"single": Single, "tiles": Concatenated, "anyres": AnyRes}


@dataclass(frozen=True)
class ImageReader:
    """Nesting and layout over the tokens of a tile: turns a scale into tokens or their count."""

    nesting: Nesting
    tiling: TilingConfig
    grid: Grid

    @property
    def layout(self) -> TileLayout:
        return LAYOUTS[self.tiling.kind](self.tiling)

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


def _token_count(token_grid: Grid) -> int:
    return token_grid[0] * token_grid[1] if isinstance(token_grid, tuple) else token_grid
