"""Images to tiles: what the encoder sees of each image, and what must be known of it to count its
tokens.

in:  images, the encoder's image processor, and how to cut (`TilingConfig`);
out: `pixel_values [t, 3, H, W]`, image after image, `pixel_mask [t, H, W]` where tiles are padded,
    and each image's `Tiles`.

How it is cut may be the image processor's own business (Aria's: m3/processing/aria_tiles.py, with
options per image). Otherwise, without pinpoints, an image is one tile: padded to a square with the
mean colour (LLaVA-1.5). With pinpoints (LLaVA-NeXT's `process_anyres_image`,
https://github.com/haotian-liu/LLaVA, `llava/mm_utils.py`) the first tile is the whole image
squeezed into a square; for the rest it is enlarged or shrunk to the best pinpoint, keeping its
shape, centred on black, and cut.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BaseImageProcessor

from m3.nesting import LAYOUTS, Tiles, TilingConfig
from m3.nesting.layout import Size
from m3.processing.aria_tiles import AS_CONFIGURED, AriaTileProcessor, TileOptions
from m3.processing.call_options import per_image
from m3.processing.images import MAX_PIXELS, ImageSource, load_image, mean_colour, pad_to_square


@dataclass(frozen=True)
class TiledImages:
    """Images ready to be seen."""

    pixel_values: Float[Tensor, "t 3 h w"]
    images: list[Tiles]
    pixel_mask: Bool[Tensor, "t h w"] | None = None

    def entries(self, tiling: TilingConfig) -> dict[str, Tensor]:
        """The entries of a batch."""
        masks = {} if self.pixel_mask is None else {"pixel_mask": self.pixel_mask}
        return {"pixel_values": self.pixel_values} | masks | tile_entries(self.images, tiling)


def tile_entries(images: Sequence[Tiles], tiling: TilingConfig) -> dict[str, Tensor]:
    """Inputs that describe the tiles to the model (m3/model/image_inputs.py); nothing for one plain
    tile per image.
    """
    entries: dict[str, list] = {}
    if tiling.kind != "single":
        entries["image_tiles"] = [tiles.number for tiles in images]
    if LAYOUTS[tiling.kind].needs_size:
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


def outline_image(
    size: Callable[[], Size],
    image_processor: BaseImageProcessor,
    tiling: TilingConfig,
    options: TileOptions,
) -> Tiles:
    """Tiles of an image, without decoding it.

    `size` gives its (height, width); not asked where it does not matter.
    """
    if isinstance(image_processor, AriaTileProcessor):
        if image_processor.is_split(options):
            return image_processor.outline(*size(), options)
        return Tiles(tokens=image_processor.tile_tokens(options))
    if options != AS_CONFIGURED:
        raise ValueError(
            "max_image_size and split_image choose among the tiles of models that read several "
            "sizes (Aria); this model's "
            f"{type(image_processor).__name__} makes tiles of one size. Leave them out"
        )
    return tiling.tiles(size()) if tiling.grid_pinpoints else Tiles()


def prepare_images(
    images: Sequence[ImageSource],
    image_processor: BaseImageProcessor,
    tiling: TilingConfig,
    max_pixels: int = MAX_PIXELS,
    fetch_urls: bool = False,
    options: Sequence[TileOptions] | None = None,
) -> TiledImages:
    """Load, cut, then let the encoder's own processor resize, rescale and normalise each tile.

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
        known.append(
            replace(
                outline_image(lambda size=size: size, image_processor, tiling, option), size=size
            )
        )
        if isinstance(image_processor, AriaTileProcessor):
            seen = image_processor.preprocess(image, option)
            pixels += seen["pixel_values"]
            masks += seen["pixel_mask"]
        else:
            pixels += _tiles_of_one_size(image, image_processor, tiling)
    if not masks:
        return TiledImages(torch.stack(pixels).float(), known)
    side = max(mask.shape[0] for mask in masks)
    pixels, masks = (
        [pad(tile, [0, side - tile.shape[-1]] * 2) for tile in tiles] for tiles in (pixels, masks)
    )
    return TiledImages(torch.stack(pixels), known, torch.stack(masks))


def _tiles_of_one_size(
    image: Image.Image, image_processor: BaseImageProcessor, tiling: TilingConfig
) -> list[Float[Tensor, "3 h w"]]:
    parts = (
        cut(image, tiling)
        if tiling.grid_pinpoints
        else [pad_to_square(image, mean_colour(image_processor))]
    )
    return [_normalised(part, image_processor) for part in parts]


def cut(image: Image.Image, tiling: TilingConfig) -> list[Image.Image]:
    """The whole image as a square, then the tiles of its best pinpoint, row by row."""
    side = tiling.tile_size
    assert side is not None  # TilingConfig wants it where there are pinpoints
    picture = enlarged(image, tiling)
    corners = [
        (x, y) for y in range(0, picture.height, side) for x in range(0, picture.width, side)
    ]
    whole = image.resize((side, side), Image.Resampling.BICUBIC)
    return [whole, *(picture.crop((x, y, x + side, y + side)) for x, y in corners)]


def enlarged(image: Image.Image, tiling: TilingConfig) -> Image.Image:
    """The picture that is cut: the image as large as its best pinpoint allows, centred on black."""
    height, width = tiling.resolution((image.height, image.width))
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
