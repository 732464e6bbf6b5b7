"""Images to tiles: what the encoder sees of each image, and what must be known of it to count its
tokens.

in:  images, and a `TileMaker`, which a processor has (m3/processing/token_counts.py);
out: `pixel_values [t, 3, H, W]`, image after image, `pixel_mask [t, H, W]` where tiles are padded,
    and each image's `Tiles`.

`EncoderTiles` draws the frames of the model's tiling (m3/nesting/tiling.py), cuts them, and lets
the encoder's image processor normalise each tile. Aria's image processor makes its tiles itself,
with options per image: m3/processing/aria_tiles.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BaseImageProcessor

from m3.nesting import Frame, Grid, Size, Tiles, Tiling
from m3.nesting.tiling import finest_first
from m3.processing.call_options import per_image
from m3.processing.images import MAX_PIXELS, ImageSource, load_image, mean_colour, pad_to_square


@dataclass(frozen=True)
class TileOptions:
    """Choices for an image; None is the model's own setting.

    `max_image_size`, `split_image`: side of its tiles in pixels, and whether it is cut, with the
        whole image in front (Aria). `resolution`: that of its budget, in pixels.
    """

    max_image_size: int | None = None
    split_image: bool | None = None
    resolution: int | None = None


AS_CONFIGURED = TileOptions()


class TileMaker(ABC):
    """Makes the tiles of one image."""

    @property
    @abstractmethod
    def largest_resolution(self) -> int:
        """The resolution in pixels of budgets that name none."""

    @abstractmethod
    def outline(self, size: Callable[[], Size], options: TileOptions) -> Tiles:
        """Tiles of an image, without decoding it.

        `size` gives its (height, width); not asked where it does not matter.
        """

    @abstractmethod
    def tile_pixels(
        self, image: Image.Image, options: TileOptions
    ) -> tuple[list[Float[Tensor, "3 h w"]], list[Bool[Tensor, "h w"]]]:
        """The tiles of an upright RGB image, and where each is image; no masks where all is."""

    @abstractmethod
    def overview(
        self, image: Image.Image, options: TileOptions = AS_CONFIGURED
    ) -> tuple[Image.Image, Size]:
        """The picture on which a grid of tokens is drawn, and its (rows, columns) of tiles."""


@dataclass(frozen=True)
class TiledImages:
    """Images ready to be seen."""

    pixel_values: Float[Tensor, "t 3 h w"]
    images: list[Tiles]
    pixel_mask: Bool[Tensor, "t h w"] | None = None

    def entries(self, tiling: Tiling) -> dict[str, Tensor]:
        """The entries of a batch."""
        masks = {} if self.pixel_mask is None else {"pixel_mask": self.pixel_mask}
        return {"pixel_values": self.pixel_values} | masks | tile_entries(self.images, tiling)


def tile_entries(images: Sequence[Tiles], tiling: Tiling) -> dict[str, Tensor]:
    """Inputs that describe the tiles to the model (m3/model/image_inputs.py); nothing for one plain
    tile per image.
    """
    entries: dict[str, list] = {}
    if not tiling.layout.has_one_tile:
        entries["image_tiles"] = [tiles.number for tiles in images]
    if tiling.layout.needs_size:
        entries["image_sizes"] = [tiles.size for tiles in images]
    if any(tiles.tokens is not None for tiles in images):
        entries["tile_tokens"] = [tiles.tokens or 0 for tiles in images]
    if any(tiles.resolution is not None for tiles in images):
        entries["image_resolutions"] = [tiles.resolution or 0 for tiles in images]
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in entries.items()}


def tile_options(
    resolutions: Sequence[int | None],
    max_image_size: int | Sequence[int] | None = None,
    split_image: bool | Sequence[bool] | None = None,
) -> list[TileOptions]:
    """One per image from the resolution of its budget and what a call chose: nothing, one value
    for all, or one per image.
    """
    number = len(resolutions)
    sizes = (
        [None] * number
        if max_image_size is None
        else per_image("max_image_size", max_image_size, number)
    )
    splits = (
        [None] * number if split_image is None else per_image("split_image", split_image, number)
    )
    for resolution, size in zip(resolutions, sizes, strict=True):
        if None not in (resolution, size) and resolution != size:
            raise ValueError(
                f"the budget sees the image at {resolution} pixels, but max_image_size says "
                f"{size}: leave one of them out"
            )
    return [TileOptions(*chosen) for chosen in zip(sizes, splits, resolutions, strict=True)]


class EncoderTiles(TileMaker):
    """The frames of a tiling, cut; the tiles of an image of one size, by the encoder's own image
    processor.

    `grid`: of the tokens of a tile of the encoder's own size.
    """

    def __init__(self, image_processor: BaseImageProcessor, tiling: Tiling, grid: Grid) -> None:
        self.image_processor = image_processor
        self.tiling = tiling
        self.grid = grid

    @property
    def largest_resolution(self) -> int:
        return self.tiling.largest_resolution(encoder_side(self.image_processor))

    def outline(self, size: Callable[[], Size], options: TileOptions) -> Tiles:
        self._check(options)
        resolution = options.resolution
        if resolution is None:
            return self.tiling.tiles(size()) if self.tiling.is_cut else Tiles()
        tiles = self.tiling.tiles(size() if self.tiling.is_cut else (1, 1), resolution)
        image_size = tiles.size if self.tiling.is_cut else None
        return replace(tiles, size=image_size, tokens=self._tile_tokens(resolution))

    def tile_pixels(
        self, image: Image.Image, options: TileOptions
    ) -> tuple[list[Float[Tensor, "3 h w"]], list[Bool[Tensor, "h w"]]]:
        self._check(options)
        frames = self.tiling.frames((image.height, image.width), options.resolution)
        tiles = [tile for frame in frames for tile in cut(self._draw(image, frame), frame.grid)]
        side = None if options.resolution is None else self._tile_side(options.resolution)
        return [_normalised(tile, self.image_processor, side) for tile in tiles], []

    def overview(
        self, image: Image.Image, options: TileOptions = AS_CONFIGURED
    ) -> tuple[Image.Image, Size]:
        frames = self.tiling.frames((image.height, image.width), options.resolution)
        frame = finest_first(frames)[0]
        return self._draw(image, frame), frame.grid

    def _tile_side(self, resolution: int) -> int:
        return self.tiling.tile_side(resolution, encoder_side(self.image_processor))

    def _tile_tokens(self, resolution: int) -> int | None:
        """Tokens of a tile; None where they are as many as at the largest resolution."""
        if isinstance(self.grid, int):  # learned queries
            return None
        full_side, side = encoder_side(self.image_processor), self._tile_side(resolution)
        if any(count * side % full_side for count in self.grid):
            raise ValueError(
                f"resolution {resolution}: a tile of {side} pixels has no whole grid of tokens; "
                f"choose a multiple of {full_side // math.gcd(full_side, *self.grid)} pixels, the "
                "side of a token"
            )
        rows, columns = (count * side // full_side for count in self.grid)
        return None if side == full_side else rows * columns

    def _draw(self, image: Image.Image, frame: Frame) -> Image.Image:
        if frame.size is None:
            return pad_to_square(image, mean_colour(self.image_processor))
        height, width = frame.size
        if frame.keeps_shape:
            return centred_on_black(image, frame.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _check(self, options: TileOptions) -> None:
        if (options.max_image_size, options.split_image) != (None, None):
            raise ValueError(
                "max_image_size and split_image choose among the tiles of models that read several "
                "sizes (Aria); this model's "
                f"{type(self.image_processor).__name__} makes tiles of one size. Leave them out, and "
                "name a resolution in the budget: 36@48"
            )
        if options.resolution is None:
            return
        largest = self.largest_resolution
        if options.resolution > largest:
            raise ValueError(
                f"resolution {options.resolution} is more than this model sees: at most {largest} "
                "pixels"
            )


def prepare_images(
    images: Sequence[ImageSource],
    maker: TileMaker,
    max_pixels: int = MAX_PIXELS,
    fetch_urls: bool = False,
    options: Sequence[TileOptions] | None = None,
) -> TiledImages:
    """Load the images and make the tiles of each.

    One image at a time, so that memory holds one decoded image however many are asked for.
    `options`: one for each image, for an image processor that has some.

    Raises:
        ValueError: no images; an image that cannot be loaded; options that the image processor does
            not have, or an image processor that does not give `[3, H, W]` for a tile.
    """
    if not images:
        raise ValueError("prepare_images needs at least one image and got none")
    pixels: list[Tensor] = []
    masks: list[Tensor] = []
    known: list[Tiles] = []
    image, decoded = None, None
    for source, option in zip(images, options or [AS_CONFIGURED] * len(images), strict=True):
        if image is None or source is not decoded:  # neighbours may be one image, seen twice
            image, decoded = load_image(source, max_pixels, fetch_urls), source
        size = (image.height, image.width)
        known.append(replace(maker.outline(lambda size=size: size, option), size=size))
        tile_pixels, tile_masks = maker.tile_pixels(image, option)
        pixels += tile_pixels
        masks += tile_masks
    if not masks and len({tile.shape for tile in pixels}) == 1:
        return TiledImages(torch.stack(pixels).float(), known)
    # tiles of several sizes: what is behind the smaller ones is padding
    masks = masks or [torch.ones(tile.shape[1:], dtype=torch.bool) for tile in pixels]
    side = max(mask.shape[0] for mask in masks)
    pixels, masks = (
        [pad(tile, [0, side - tile.shape[-1]] * 2) for tile in tiles] for tiles in (pixels, masks)
    )
    return TiledImages(torch.stack(pixels), known, torch.stack(masks))


def cut(picture: Image.Image, grid: Size) -> list[Image.Image]:
    """The (rows, columns) of equal tiles of a picture, row by row."""
    rows, columns = grid
    if grid == (1, 1):
        return [picture]
    height, width = picture.height // rows, picture.width // columns
    corners = [(x * width, y * height) for y in range(rows) for x in range(columns)]
    return [picture.crop((x, y, x + width, y + height)) for x, y in corners]


def centred_on_black(image: Image.Image, size: Size) -> Image.Image:
    """The image in its shape, as large as (height, width) allow, in the middle."""
    height, width = size
    picture = Image.new("RGB", (width, height))
    shown = image.resize(_inside(image.size, (width, height)), Image.Resampling.BICUBIC)
    picture.paste(shown, ((width - shown.width) // 2, (height - shown.height) // 2))
    return picture


def _inside(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image of `size`, in its shape, as large as `frame` allows; the free
    side is rounded up.
    """
    across, down = frame[0] / size[0], frame[1] / size[1]
    if across < down:
        return frame[0], min(math.ceil(size[1] * across), frame[1])
    return min(math.ceil(size[0] * down), frame[0]), frame[1]


def encoder_side(image_processor: BaseImageProcessor) -> int:
    """Longer side in pixels of the images that an image processor makes."""
    own = image_processor.to_dict()
    sizes = own["crop_size"] if own.get("do_center_crop") else own["size"]
    sides = [side for side in dict(sizes).values() if side is not None]
    return max(sides) if isinstance(sizes, Mapping) else int(sizes)


def _at_side(image_processor: BaseImageProcessor, side: int | None) -> dict[str, dict[str, int]]:
    """Keywords of a call that makes squares of `side` pixels; none where that is None."""
    if side is None:
        return {}
    own = image_processor.to_dict()
    return {
        name: {key: side for key, value in dict(own[name]).items() if value is not None}
        for name in ("size", "crop_size")
        if own.get(name)
    }


def _normalised(
    tile: Image.Image, image_processor: BaseImageProcessor, side: int | None
) -> Float[Tensor, "3 h w"]:
    """The tile as the encoder takes it; `side` in pixels, None the image processor's own."""
    options: dict[str, Any] = {"return_tensors": "np", **_at_side(image_processor, side)}
    processed = image_processor(tile, **options)
    pixels = torch.as_tensor(np.asarray(processed["pixel_values"]))
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise ValueError(
            f"{type(image_processor).__name__} gave pixel_values of shape {list(pixels.shape)} for "
            "one image; "
            "expected [1, 3, height, width]. Use an image processor that makes one fixed-size "
            "tensor per image"
        )
    return pixels[0]
