"""Aria's image processing: an image -> square tiles of one size, padded on the right and below, and
where the image is.

in: upright RGB images (`load_image`); out: `pixel_values [t, 3, S, S]` in [-1, 1] and `pixel_mask
[t, S, S]`, False on the padding. S is `max_image_size`, 490 or 980 pixels.

Whole, an image is one tile: its longer side becomes S, its shorter side follows but never falls
below `min_image_size`. Split, it is first stretched over the grid of S-pixel tiles (up to 8 of
them, 19 shapes) nearest to its own shape and cut; the whole image stands before its pieces. Every
tile goes through the same resizing.
Rules: `aria/model/vision_processor.py` of https://github.com/rhymes-ai/Aria. transformers' port
    differs when an image is
split: its grids count in 490 pixels whatever the tile's size, the whole image is left out, and it
tells one number of tiles for a batch of images that have different ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from m3.nesting import Size, Tiles
from m3.nesting.tiling import nearest_grid
from m3.processing.tiles import AS_CONFIGURED, TileMaker, TileOptions, cut

GRIDS: tuple[Size, ...] = (
    *((rows, 1) for rows in range(2, 9)),
    *((4, 2), (3, 2), (2, 2), (1, 2)),
    *((1, 3), (2, 3), (1, 4), (2, 4)),
    *((1, columns) for columns in range(5, 9)),
)
"""(rows, columns) an image may be split into, in the order in which equally near ones are tried."""


def split(image: Image.Image, size: int) -> list[Image.Image]:
    """The image itself, then its pieces row by row, each `size` x `size`."""
    rows, columns = nearest_grid((image.height, image.width), size, GRIDS)
    stretched = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    return [image, *cut(stretched, (rows, columns))]


def fitted_size(width: int, height: int, size: int, least: int) -> tuple[int, int]:
    """(width, height) of an image inside its tile."""
    scale = size / max(width, height)
    if width >= height:
        return size, max(int(height * scale), least)
    return max(int(width * scale), least), size


class AriaTileProcessor(BaseImageProcessor):
    """Saved and loaded with `M3Processor`; PIL and numpy alone, so that a file gives the same
    numbers everywhere.
    """

    model_input_names = ["pixel_values", "pixel_mask"]

    def __init__(
        self,
        max_image_size: int = 980,
        min_image_size: int = 336,
        split_image: bool = False,
        size_tokens: Sequence[Sequence[int]] = ((490, 128), (980, 256)),
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        """
        Args:
            max_image_size: side of a tile in pixels where a call does not say.
            min_image_size: least side of an image inside its tile, in pixels.
            split_image: whether images are split where a call does not say.
            size_tokens: the (side of a tile in pixels, tokens that the projector makes of it) that
                the weights know.
            kwargs: what transformers adds to a saved processor.

        Raises:
            ValueError: a size that `size_tokens` does not list.
        """
        super().__init__(**kwargs)
        self.max_image_size, self.min_image_size, self.split_image = (
            max_image_size,
            min_image_size,
            split_image,
        )
        self.size_tokens = [list(pair) for pair in size_tokens]
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.tile_tokens()

    def tile_tokens(self, options: TileOptions = AS_CONFIGURED) -> int:
        """Tokens of one tile."""
        size = self._size(options)
        known = {int(side): int(tokens) for side, tokens in self.size_tokens}
        if size not in known:
            raise ValueError(
                f"max_image_size {size} is none of the sizes this model reads: "
                f"{', '.join(map(str, known))}"
            )
        return known[size]

    def is_split(self, options: TileOptions = AS_CONFIGURED) -> bool:
        """Tell whether an image is cut."""
        return self.split_image if options.split_image is None else options.split_image

    def outline(self, height: int, width: int, options: TileOptions = AS_CONFIGURED) -> Tiles:
        """Tiles of an image of this size in pixels, without looking at it."""
        number = 1
        if self.is_split(options):
            rows, columns = nearest_grid((height, width), self._size(options), GRIDS)
            number += columns * rows
        return Tiles(number, (height, width), self.tile_tokens(options), options.resolution)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  # takes only what Aria's processing has
        self,
        images: Image.Image,
        options: TileOptions = AS_CONFIGURED,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """The tiles of one RGB image: `pixel_values [t, 3, S, S]`, `pixel_mask [t, S, S]`."""
        self.tile_tokens(options)  # refuses unknown sizes
        size = self._size(options)
        tiles = [
            self._fit(tile, size)
            for tile in (split(images, size) if self.is_split(options) else [images])
        ]
        pixels, masks = zip(*tiles, strict=True)
        data = {"pixel_values": torch.stack(pixels), "pixel_mask": torch.stack(masks)}
        return BatchFeature(data, tensor_type=return_tensors)

    def _size(self, options: TileOptions) -> int:
        asked_sizes = (options.resolution, options.max_image_size, self.max_image_size)
        return next(size for size in asked_sizes if size is not None)

    def _fit(
        self, tile: Image.Image, size: int
    ) -> tuple[Float[Tensor, "3 size size"], Bool[Tensor, "size size"]]:
        width, height = fitted_size(*tile.size, size, self.min_image_size)
        padded = Image.new("RGB", (size, size))  # black
        padded.paste(tile.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(np.array(padded)).permute(2, 0, 1).to(torch.float32) / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std)
        )
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[:height, :width] = True
        return (pixels - mean) / std, mask


class AriaTiles(TileMaker):
    """Tiles as an `AriaTileProcessor` makes them; the model's tiling says their layout alone."""

    def __init__(self, image_processor: AriaTileProcessor) -> None:
        self.image_processor = image_processor

    def outline(self, size: Callable[[], Size], options: TileOptions) -> Tiles:
        if self.image_processor.is_split(options):
            return self.image_processor.outline(*size(), options)
        tokens = self.image_processor.tile_tokens(options)
        return Tiles(tokens=tokens, resolution=options.resolution)

    def tile_pixels(
        self, image: Image.Image, options: TileOptions
    ) -> tuple[list[Float[Tensor, "3 h w"]], list[Bool[Tensor, "h w"]]]:
        tiles = self.image_processor.preprocess(image, options)
        return list(tiles["pixel_values"]), list(tiles["pixel_mask"])

    @property
    def largest_resolution(self) -> int:
        return self.image_processor.max_image_size

    def overview(
        self, image: Image.Image, options: TileOptions = AS_CONFIGURED
    ) -> tuple[Image.Image, Size]:
        """The image itself: learned queries have no place on it."""
        return image, (1, 1)
