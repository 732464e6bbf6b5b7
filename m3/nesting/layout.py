"""Tile layouts: an image may be seen as several tiles; every tile is nested to the scale, then the
tiles become one sequence.

in:  the nested tokens of an image's tiles `[t, m, d]`, the scale being m, and what is known of the
    image: `Tiles`;
out: its token sequence `[count, d]`, and `count` before any pixel is seen: placeholders and tokens
    come of one arithmetic.

    single   one tile                                                                  count = m
    tiles    tiles one after the other                                                 count = t m
    anyres   the whole image, then rows x columns of tiles put together again, the rows and columns that are padding left
             out, and one learned vector at the end of each row (LLaVA-NeXT,
             https://llava-vl.github.io/blog/2024-01-30-llava-next/, "spatial_unpad"; pooled per
             tile: M3, https://arxiv.org/abs/2405.17430, section 4.1)

A 2 x 2 grid of a square image with the whole image in front has 2928, 744, 192, 51 or 7 tokens at
576, 144, 36, 9 or 1. Sizes and grids are (height, width) and (rows, columns) throughout.
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
    """One image before it is seen: its tiles, its size in pixels as it came, and the tokens of a
    tile where they vary.
    """

    number: int = 1
    size: Size | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.number < 1 or (self.size is not None and min(self.size) < 1):
            raise ValueError(f"an image has at least 1 tile of at least 1 x 1 pixels, got {self}")


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How images are cut into tiles, and how their tokens are laid out.

    `kind`: a row of `LAYOUTS`. `tile_size`: side of a tile in pixels. `grid_pinpoints`: the
    (height, width) to which images may be enlarged and cut into tiles, in order of preference;
    empty: images are not cut. `unpad_rounding`: how `anyres` turns the height (or width) of the
    image in tokens into a whole number: `truncate` (LLaVA-NeXT's code) or `seven_digits`
    (transformers: rounded to 7 decimals first, so 31.999999999999996 is 32).
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
        side = self.tile_size
        if self.grid_pinpoints and (
            side is None or any(h % side or w % side for h, w in self.grid_pinpoints)
        ):
            raise ValueError(
                f"grid_pinpoints {list(self.grid_pinpoints)} must be multiples of tile_size, which "
                f"is {side}"
            )

    def to_dict(self) -> dict:
        """As it stands in a JSON file; `TilingConfig(**...)` of it is equal."""
        return asdict(self) | {
            "grid_pinpoints": [list(pinpoint) for pinpoint in self.grid_pinpoints]
        }

    def resolution(self, size: Size) -> Size:
        """The pinpoint that shows most of an image of `size`, and wastes least; the first of
        equals.

        (`select_best_resolution` of LLaVA-NeXT, `llava/mm_utils.py`.)
        """
        height, width = size

        def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - pinpoint[0] * pinpoint[1]

        rows, columns = max(self.grid_pinpoints, key=merit)
        return rows, columns

    def tile_grid(self, size: Size) -> Grid:
        """(rows, columns) of tiles that an image of `size` is cut into, the whole image not
        counted.
        """
        assert self.tile_size is not None  # where there are pinpoints
        height, width = self.resolution(size)
        return height // self.tile_size, width // self.tile_size

    def tiles(self, size: Size) -> Tiles:
        """What becomes of an image of `size`: the whole image, then its tiles.

        Without pinpoints, the whole image alone.
        """
        if not self.grid_pinpoints:
            return Tiles(size=size)
        grid = self.tile_grid(size)
        assert isinstance(grid, tuple)
        return Tiles(1 + grid[0] * grid[1], size)

    def largest(self) -> Tiles:
        """The image with most tiles: one as large as the largest pinpoint."""
        if not self.grid_pinpoints:
            return Tiles()
        height, width = max(self.grid_pinpoints, key=lambda pinpoint: pinpoint[0] * pinpoint[1])
        return self.tiles((height, width))


class TileLayout(ABC):
    """A row of `LAYOUTS`.

    `shape` is how the tokens of a nested tile stand: (rows, columns), or their number.
    """

    needs_size = False
    """Whether the size of an image in pixels changes its tokens."""
    has_newline = False
    """Whether a learned vector ends each row."""

    def __init__(self, tiling: TilingConfig) -> None:
        self.tiling = tiling

    @abstractmethod
    def count(self, shape: Grid, tiles: Tiles) -> int:
        """How many tokens `assemble` returns.

        `ValueError` where `tiles` does not say enough or contradicts itself.
        """

    @abstractmethod
    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        shape: Grid,
        tiles: Tiles,
        newline: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        """The token sequence of one image. Differentiable."""

    def padding(self, shape: Grid, tiles: Tiles) -> Size:
        """How many (rows, columns) of tokens on each side of the cut picture are left out, since
        they show padding.
        """
        return 0, 0


class Single(TileLayout):
    """One tile, as it is."""

    def count(self, shape: Grid, tiles: Tiles) -> int:
        if tiles.number != 1:
            raise ValueError(
                f"tiling single takes one tile per image, but an image has {tiles.number} tiles"
            )
        return _tokens(shape)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        shape: Grid,
        tiles: Tiles,
        newline: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        self.count(shape, tiles)
        return tokens[0]


class Concatenated(TileLayout):
    """Tiles one after the other (Aria; LLaVA-NeXT's patch merge `flat`)."""

    def count(self, shape: Grid, tiles: Tiles) -> int:
        return tiles.number * _tokens(shape)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        shape: Grid,
        tiles: Tiles,
        newline: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        return tokens.flatten(0, 1)


class AnyRes(TileLayout):
    """The whole image, then its tiles as one picture without its padding, each row ended by
    `newline` (LLaVA-NeXT).
    """

    needs_size = True
    has_newline = True

    def count(self, shape: Grid, tiles: Tiles) -> int:
        (rows, columns), (top, left) = self._picture(shape, tiles)
        return _tokens(shape) + (rows - 2 * top) * (columns - 2 * left + 1)

    def assemble(
        self,
        tokens: Float[Tensor, "t m d"],
        shape: Grid,
        tiles: Tiles,
        newline: Float[Tensor, " d"] | None,
    ) -> Float[Tensor, "count d"]:
        (rows, columns), (top, left) = self._picture(shape, tiles)
        # the model has one; `_picture` refuses other shapes
        assert newline is not None and isinstance(shape, tuple)
        (r, c), across = shape, columns // shape[1]
        picture = rearrange(tokens[1:], "(y x) (r c) d -> (y r) (x c) d", x=across, r=r, c=c)
        picture = picture[top : rows - top, left : columns - left]
        ends = repeat(newline.to(picture.dtype), "d -> rows 1 d", rows=len(picture))
        return torch.cat([tokens[0], torch.cat([picture, ends], dim=1).flatten(0, 1)])

    def padding(self, shape: Grid, tiles: Tiles) -> Size:
        return self._picture(shape, tiles)[1]

    def _picture(self, shape: Grid, tiles: Tiles) -> tuple[Size, Size]:
        """(rows, columns) of tokens of all tiles together, and how many (rows, columns) are
        padding on each side.
        """
        if not isinstance(shape, tuple):
            raise ValueError(
                "tiling anyres puts tiles side by side, so their tokens must stand on a grid: use "
                "the nesting grid_pool, or "
                "tiling tiles"
            )
        if tiles.size is None:
            raise ValueError(
                "tiling anyres needs the size of each image in pixels: image_sizes, (height, width)"
            )
        grid = self.tiling.tile_grid(tiles.size)
        assert isinstance(grid, tuple)
        if tiles.number != 1 + grid[0] * grid[1]:
            raise ValueError(
                f"an image of {tiles.size[0]} x {tiles.size[1]} pixels has 1 + {grid[0]} x "
                f"{grid[1]} tiles by "
                f"grid_pinpoints, but image_tiles says {tiles.number}"
            )
        rows, columns = grid[0] * shape[0], grid[1] * shape[1]
        height, width = tiles.size
        if width / height > columns / rows:  # the image was wider: padding above and below
            return (rows, columns), ((rows - self._whole(height * (columns / width))) // 2, 0)
        return (rows, columns), (0, (columns - self._whole(width * (rows / height))) // 2)

    def _whole(self, length: float) -> int:
        """The published codes differ here by one token, where `length` is a whole number but for
        the last bit.
        """
        return int(length if self.tiling.unpad_rounding == "truncate" else round(length, 7))


LAYOUTS: dict[str, type[TileLayout]] = {"single": Single, "tiles": Concatenated, "anyres": AnyRes}


@dataclass(frozen=True)
class ImageReader:
    """A nesting and a layout over the tokens of a tile: all that turns a scale into tokens, and
    into their number.
    """

    nesting: Nesting
    tiling: TilingConfig
    grid: Grid

    @property
    def layout(self) -> TileLayout:
        return LAYOUTS[self.tiling.kind](self.tiling)

    def shape(self, scale: int, tokens: int | None) -> Grid:
        """How the tokens of a tile stand at `scale`; an `UnreachableScaleError` where they do
        not reach it.
        """
        return self.nesting.shape(self.grid if tokens is None else tokens, scale)

    def count(self, scale: int, tiles: Tiles) -> int:
        """Tokens of an image at `scale` per tile: placeholders in the text, vectors out of
        `read`.
        """
        return self.layout.count(self.shape(scale, tiles.tokens), tiles)

    def read(
        self,
        features: Float[Tensor, "t n d"],
        scale: int,
        images: Sequence[Tiles],
        newline: Float[Tensor, " d"] | None,
        reduce: Reduce,
    ) -> list[Float[Tensor, "_ d"]]:
        """The token sequence of each image at `scale`, of the tokens of all their tiles, image
        after image.

        `features` may be padded where the tokens of tiles vary; what is behind `Tiles.tokens` is
        never read.
        """
        sequences: list[Tensor] = []
        start = 0
        for tokens, group in _runs(images):
            end = start + sum(tiles.number for tiles in group)
            grid = self.grid if tokens is None else tokens
            nested = reduce(features[start:end, :tokens], scale, grid)
            shape = self.shape(scale, tokens)
            parts = nested.split([tiles.number for tiles in group])
            sequences += [
                self.layout.assemble(part, shape, tiles, newline)
                for part, tiles in zip(parts, group, strict=True)
            ]
            start = end
        return sequences


def _runs(images: Sequence[Tiles]) -> list[tuple[int | None, list[Tiles]]]:
    """Neighbours with the same number of tokens per tile together, so that they are nested in
    one go.
    """
    runs: list[tuple[int | None, list[Tiles]]] = []
    for tiles in images:
        if runs and runs[-1][0] == tiles.tokens:
            runs[-1][1].append(tiles)
        else:
            runs.append((tiles.tokens, [tiles]))
    return runs


def _tokens(shape: Grid) -> int:
    return shape[0] * shape[1] if isinstance(shape, tuple) else shape
