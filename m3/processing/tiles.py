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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BaseImageProcessor

from m3.nesting import Frame, Size, Tiles, Tiling
from m3.nesting.tiling import finest_first
from m3.processing.call_options import per_image
from m3.processing.images import MAX_PIXELS, ImageSource, load_image, mean_colour, pad_to_square


@dataclass(frozen=True)
class TileOptions:
    """Choices of a call for an image; None is the image processor's own setting.

    `max_image_size`: side of its tiles in pixels. `split_image`: whether it is cut, with the whole
        image in front.
    """

    max_image_size: int | None = None
    split_image: bool | None = None


AS_CONFIGURED = TileOptions()


class TileMaker(ABC):
    """Makes the tiles of one image."""

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
    def overview(self, image: Image.Image) -> tuple[Image.Image, Size]:
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
        entries["tile_tokens"] = [tiles.tokens for tiles in images]
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in entries.items()}


def tile_options(
    max_image_size: int | Sequence[int] | None,
    split_image: bool | Sequence[bool] | None,
    number: int,
) -> list[TileOptions]:
    """One for each of `number` images from what a call chose: nothing, one value for all, or one
    per image.
    """
    sizes = (
        [None] * number
        if max_image_size is None
        else per_image("max_image_size", max_image_size, number)
    )
    splits = (
        [None] * number if split_image is None else per_image("split_image", split_image, number)
    )
    return [TileOptions(*chosen) for chosen in zip(sizes, splits, strict=True)]


class EncoderTiles(TileMaker):
    """The frames of a tiling, cut; tiles of one size by the encoder's own image processor."""

    def __init__(self, image_processor: BaseImageProcessor, tiling: Tiling) -> None:
        self.image_processor = image_processor
        self.tiling = tiling

    def outline(self, size: Callable[[], Size], options: TileOptions) -> Tiles:
        self._check(options)
        return self.tiling.tiles(size()) if self.tiling.is_cut else Tiles()

    def tile_pixels(
        self, image: Image.Image, options: TileOptions
    ) -> tuple[list[Float[Tensor, "3 h w"]], list[Bool[Tensor, "h w"]]]:
        self._check(options)
        frames = self.tiling.frames((image.height, image.width))
        tiles = [tile for frame in frames for tile in cut(self._draw(image, frame), frame.grid)]
        return [_normalised(tile, self.image_processor) for tile in tiles], []

    def overview(self, image: Image.Image) -> tuple[Image.Image, Size]:
        frame = finest_first(self.tiling.frames((image.height, image.width)))[0]
        return self._draw(image, frame), frame.grid

    def _draw(self, image: Image.Image, frame: Frame) -> Image.Image:
        if frame.size is None:
            return pad_to_square(image, mean_colour(self.image_processor))
        height, width = frame.size
        if frame.keeps_shape:
            return centred_on_black(image, frame.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _check(self, options: TileOptions) -> None:
        if options != AS_CONFIGURED:
            raise ValueError(
                "max_image_size and split_image choose among the tiles of models that read several "
                "sizes (Aria); this model's "
                f"{type(self.image_processor).__name__} makes tiles of one size. Leave them out"
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
    for source, option in zip(images, options or [AS_CONFIGURED] * len(images), strict=True):
        image = load_image(source, max_pixels, fetch_urls)
        size = (image.height, image.width)
        known.append(replace(maker.outline(lambda size=size: size, option), size=size))
        tile_pixels, tile_masks = maker.tile_pixels(image, option)
        pixels += tile_pixels
        masks += tile_masks
    if not masks:
        return TiledImages(torch.stack(pixels).float(), known)
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


def _normalised(tile: Image.Image, image_processor: BaseImageProcessor) -> Float[Tensor, "3 h w"]:
    pixels = torch.as_tensor(np.asarray(image_processor(tile, return_tensors="np")["pixel_values"]))
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise ValueError(
            f"{type(image_processor).__name__} gave pixel_values of shape {list(pixels.shape)} for "
            "one image; "
            "expected [1, 3, height, width]. Use an image processor that makes one fixed-size "
            "tensor per image"
        )
    return pixels[0]
