"""Tilings: which tiles an image becomes, in which order, and how their tokens are laid out.

in:  the size of an image in pixels;
out: its `Frame`s, in the order of their tiles: pictures made of the image, each cut into a grid of
    tiles row by row. Tile counts, pixels (m3/processing/tiles.py) and the drawn grid of tokens
    (m3/processing/token_grid.py) all follow from them.

A row of `TILINGS` is a class that is the tiling's configuration too, and owns all that is true of
it. docs/add_a_tiling.md adds one. Sizes and grids are (height, width) and (rows, columns).
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from m3.nesting.layouts import Concatenated, OneTile, PictureRows, Size, TileLayout, Tiles

UNPAD_ROUNDINGS: dict[str, Callable[[float], int]] = {
    "truncate": int,
    "seven_digits": lambda length: int(round(length, 7)),
}
"""Roundings of the published codes, which differ by one token just below a whole number."""


@dataclass(frozen=True)
class Frame:
    """A picture made of an image, and the (rows, columns) of tiles that it is cut into.

    `size`: (height, width) in pixels; None is the image itself, padded to a square with the mean
    colour. `keeps_shape`: the image stands in the middle on black, as large as it fits; otherwise
    it is stretched over the frame.
    """

    grid: Size = (1, 1)
    size: Size | None = None
    keeps_shape: bool = True

    @property
    def tile_count(self) -> int:
        return self.grid[0] * self.grid[1]


def finest_first(frames: Sequence[Frame]) -> list[Frame]:
    """Frames of most tiles first; among equals those in which the image keeps its shape."""
    return sorted(frames, key=lambda frame: (frame.tile_count, frame.keeps_shape), reverse=True)


@dataclass(frozen=True, kw_only=True)
class Tiling(ABC):
    """Cutting of images into tiles. `kind`: a row of `TILINGS`. `tile_size`: side of a tile in
    pixels, which are those of the encoder's images.
    """

    kind: str
    tile_size: int | None

    @property
    @abstractmethod
    def layout(self) -> TileLayout:
        """Order in which the tokens of the tiles become one sequence."""

    @property
    def is_cut(self) -> bool:
        """Images are cut into tiles, by their size in pixels."""
        return False

    @property
    def grid_note(self) -> str:
        """A sentence for readers of a picture on which the grid of tokens is drawn."""
        return (
            "Each visual token is the mean over one cell of the grid on the image, which is padded "
            "to a square."
        )

    def largest_resolution(self, encoder_side: int) -> int:
        """The resolution of budgets that name none; `encoder_side`: of the encoder's images, in
        pixels.
        """
        return encoder_side

    def tile_side(self, resolution: int | None, encoder_side: int) -> int:
        """Side of a tile in pixels, of an image seen at a resolution."""
        return encoder_side if resolution is None else min(resolution, encoder_side)

    def frames(self, image_size: Size, resolution: int | None = None) -> tuple[Frame, ...]:
        """Pictures that are made of an image and cut, in the order of their tiles.

        A `ValueError` where the tiling has none at `resolution` (None: the largest).
        """
        return (Frame(),)

    def tiles(self, image_size: Size, resolution: int | None = None) -> Tiles:
        """Tiles of an image."""
        frames = self.frames(image_size, resolution)
        count = sum(frame.tile_count for frame in frames)
        return Tiles(count, image_size, resolution=resolution)

    def largest(self, resolution: int | None = None) -> Tiles:
        """Tiles of an image that has most of them at `resolution`."""
        return Tiles()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `make_tiling` of them is equal."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SingleTile(Tiling):
    """One tile: the image padded to a square (LLaVA-1.5)."""

    kind: str = "single"
    tile_size: int | None = None

    @property
    def layout(self) -> TileLayout:
        return OneTile()


@dataclass(frozen=True, kw_only=True)
class PinpointTiles(Tiling):
    """The whole image, squeezed into a square, then the tiles of the best of several sizes
    (LLaVA-NeXT's `process_anyres_image`, https://github.com/haotian-liu/LLaVA,
    `llava/mm_utils.py`), one after the other.

    `grid_pinpoints`: the (height, width) to which images may be enlarged and cut into tiles, in
    order of preference. Empty: the configuration does not cut; an image processor may that makes
    its tiles itself (Aria's, m3/processing/aria_tiles.py).
    """

    kind: str = "tiles"
    tile_size: int | None = None
    grid_pinpoints: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        pinpoints = tuple((int(height), int(width)) for height, width in self.grid_pinpoints)
        object.__setattr__(self, "grid_pinpoints", pinpoints)
        side = self.tile_size
        if pinpoints and (side is None or any(h % side or w % side for h, w in pinpoints)):
            raise ValueError(
                f"grid_pinpoints {list(pinpoints)} must be multiples of tile_size, which is {side}"
            )

    @property
    def layout(self) -> TileLayout:
        return Concatenated()

    @property
    def is_cut(self) -> bool:
        return bool(self.grid_pinpoints)

    @property
    def grid_note(self) -> str:
        if not self.is_cut:
            return super().grid_note
        return (
            "The image is seen in tiles (thick lines), and once more as a whole; each visual token "
            "is the mean over one cell."
        )

    def largest_resolution(self, encoder_side: int) -> int:
        return max((max(pinpoint) for pinpoint in self.grid_pinpoints), default=encoder_side)

    def frames(self, image_size: Size, resolution: int | None = None) -> tuple[Frame, ...]:
        """The whole image, then its tiles; up to `tile_size` pixels the whole image alone."""
        if not self.is_cut:
            return super().frames(image_size)
        assert self.tile_size is not None  # `__post_init__` requires it with pinpoints
        side = self.tile_side(resolution, self.tile_size)
        whole = Frame(size=(side, side), keeps_shape=False)
        if resolution is not None and resolution <= self.tile_size:
            return (whole,)
        pinpoint = self.pinpoint(image_size, resolution)
        grid = pinpoint[0] // self.tile_size, pinpoint[1] // self.tile_size
        return whole, Frame(grid, pinpoint)

    def largest(self, resolution: int | None = None) -> Tiles:
        if not self.is_cut:
            return Tiles()
        assert self.tile_size is not None  # `__post_init__` requires it with pinpoints
        if resolution is not None and resolution <= self.tile_size:
            return self.tiles((resolution, resolution), resolution)
        pinpoints = self._pinpoints(resolution)
        return self.tiles(max(pinpoints, key=lambda size: size[0] * size[1]), resolution)

    def to_dict(self) -> dict[str, Any]:
        pinpoints = [list(pinpoint) for pinpoint in self.grid_pinpoints]
        return super().to_dict() | {"grid_pinpoints": pinpoints}

    def _pinpoints(self, resolution: int | None) -> list[Size]:
        """The pinpoints with no side above `resolution`."""
        sizes = [(height, width) for height, width in self.grid_pinpoints]
        fitting = [size for size in sizes if resolution is None or max(size) <= resolution]
        if not fitting:
            sides = sorted({max(size) for size in sizes})
            raise ValueError(
                f"resolution {resolution} is between that of the whole image alone, up to "
                f"{self.tile_size} pixels, and those of the tiles: {', '.join(map(str, sides))} "
                "(longest side of grid_pinpoints)"
            )
        return fitting

    def pinpoint(self, image_size: Size, resolution: int | None = None) -> Size:
        """First of the pinpoints up to `resolution` that keep most of an image's pixels and waste
        least.

        (`select_best_resolution` of LLaVA-NeXT, `llava/mm_utils.py`.)
        """
        height, width = image_size

        def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
            ratio = min(pinpoint[1] / width, pinpoint[0] / height)
            shown_pixels = min(int(width * ratio) * int(height * ratio), width * height)
            return shown_pixels, shown_pixels - pinpoint[0] * pinpoint[1]

        return max(self._pinpoints(resolution), key=merit)

    def cut_grid(self, image_size: Size, resolution: int | None = None) -> Size:
        """(rows, columns) of tiles that an image is cut into, the whole image not counted: (0, 0)
        where that is all.
        """
        frames = self.frames(image_size, resolution)
        return frames[1].grid if len(frames) > 1 else (0, 0)


@dataclass(frozen=True, kw_only=True)
class AnyRes(PinpointTiles):
    """As `PinpointTiles`, with the tokens of the tiles put together as one picture without its
    padding.

    `unpad_rounding`: rounding of the image's height (or width) in tokens: `truncate` (LLaVA-NeXT's
    code) or `seven_digits` (transformers: rounded to 7 decimals first, so 31.999999999999996 is 32).
    """

    kind: str = "anyres"
    unpad_rounding: str = "truncate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unpad_rounding not in UNPAD_ROUNDINGS:
            raise ValueError(
                f"unknown unpad_rounding {self.unpad_rounding!r}; known: "
                f"{', '.join(UNPAD_ROUNDINGS)}"
            )
        if not self.grid_pinpoints:
            raise ValueError(
                "tiling anyres needs grid_pinpoints: the [height, width] that images "
                "may be enlarged to"
            )

    @property
    def layout(self) -> TileLayout:
        return PictureRows(self.cut_grid, UNPAD_ROUNDINGS[self.unpad_rounding])

    @property
    def grid_note(self) -> str:
        return super().grid_note + " Cells that show padding are left out."


@dataclass(frozen=True, kw_only=True)
class AspectRatioTiles(Tiling):
    """The image stretched over the grid of tiles nearest to its shape, and last, where there is
    more than one tile, the whole image in a square (InternVL's dynamic resolution,
    https://arxiv.org/abs/2404.16821; `GotOcr2ImageProcessor` of transformers).

    `min_tiles`, `max_tiles`: of the grid, the whole image not counted.
    """

    kind: str = "internvl"
    tile_size: int
    min_tiles: int = 1
    max_tiles: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(
                "tiling internvl takes min_tiles from 1 to max_tiles, got min_tiles "
                f"{self.min_tiles} and max_tiles {self.max_tiles}"
            )

    @property
    def layout(self) -> TileLayout:
        return Concatenated()

    @property
    def is_cut(self) -> bool:
        return True

    @property
    def grid_note(self) -> str:
        return (
            "The image is stretched over tiles (thick lines), and seen once more as a whole where "
            "there is more than one; each visual token is the mean over one cell."
        )

    def largest_resolution(self, encoder_side: int) -> int:
        return self.max_tiles * self.tile_size

    def frames(self, image_size: Size, resolution: int | None = None) -> tuple[Frame, ...]:
        """Tiles, then the whole image; up to twice `tile_size` pixels one tile."""
        side = self.tile_side(resolution, self.tile_size)
        grid = self.cut_grid(image_size, resolution)
        tiles = Frame(grid, (grid[0] * side, grid[1] * side), keeps_shape=False)
        whole = Frame(size=(side, side), keeps_shape=False)
        return (tiles,) if tiles.tile_count == 1 else (tiles, whole)

    def largest(self, resolution: int | None = None) -> Tiles:
        rows, columns = max(self._grids(resolution), key=lambda grid: grid[0] * grid[1])
        return self.tiles((rows * self.tile_size, columns * self.tile_size), resolution)

    def _grids(self, resolution: int | None) -> list[Size]:
        """Grids with no side above `resolution`; up to `tile_size` pixels that of one tile."""
        grids = list(tile_grids(self.min_tiles, self.max_tiles))
        if resolution is None:
            return grids
        if resolution <= self.tile_size:
            return [(1, 1)]
        fitting = [grid for grid in grids if max(grid) * self.tile_size <= resolution]
        if not fitting:
            raise ValueError(
                f"resolution {resolution} leaves no grid of {self.min_tiles} or more tiles of "
                f"{self.tile_size} pixels: choose up to {self.tile_size} for one tile, or more "
                "pixels"
            )
        return fitting

    def cut_grid(self, image_size: Size, resolution: int | None = None) -> Size:
        """(rows, columns) of tiles that an image is cut into, the whole image not counted."""
        return nearest_grid(image_size, self.tile_size, self._grids(resolution))


@functools.cache
def tile_grids(min_tiles: int, max_tiles: int) -> tuple[Size, ...]:
    """Every (rows, columns) of `min_tiles` to `max_tiles` tiles: fewest tiles first, then fewest
    columns.
    """
    return tuple(
        (count // columns, columns)
        for count in range(min_tiles, max_tiles + 1)
        for columns in range(1, count + 1)
        if count % columns == 0
    )


def nearest_grid(image_size: Size, tile_size: int, grids: Sequence[Size]) -> Size:
    """The (rows, columns) whose shape is nearest to the image's (Aria's rule and InternVL's).

    Of two that are equally near, the later one is taken if the image has more than half of its
    pixels.
    """
    height, width = image_size
    best_grid, least_distance = grids[0], float("inf")
    for rows, columns in grids:
        distance = abs(width / height - columns / rows)
        fills_half = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < least_distance or (distance == least_distance and fills_half):
            best_grid, least_distance = (rows, columns), distance
    return best_grid


TILINGS: dict[str, type[Tiling]] = {
    "single": SingleTile,
    "tiles": PinpointTiles,
    "anyres": AnyRes,
    "internvl": AspectRatioTiles,
}
UNUSED_DEFAULTS: dict[str, Any] = {"grid_pinpoints": [], "unpad_rounding": "truncate"}
"""Settings that a config.json may state of any tiling; where a tiling has no such setting, its
default means nothing.
"""


def make_tiling(settings: Mapping[str, Any]) -> Tiling:
    """Tiling of an entry in config.json; without a `kind` it is `single`.

    Raises:
        ValueError: an unknown tiling, settings that it does not have, lacks or cannot take.
    """
    kind = settings.get("kind", "single")
    if kind not in list(TILINGS):  # a list in a file is no key
        raise ValueError(f"unknown tiling kind {kind!r}; known: {', '.join(TILINGS)}")
    own_fields = fields(TILINGS[kind])
    known = [field.name for field in own_fields]
    given = {
        name: value
        for name, value in settings.items()
        if name in known or name not in UNUSED_DEFAULTS or value != UNUSED_DEFAULTS[name]
    }
    unknown = sorted(given.keys() - set(known))
    missing = [field.name for field in own_fields if field.default is MISSING]
    missing = sorted(set(missing) - given.keys())
    if unknown or missing:
        fault = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"the tiling {kind} {fault}; its settings are {', '.join(known)}")
    return TILINGS[kind](**given | {"kind": kind})
