"""Images to tiles: what the encoder sees of each image, and what must be known of it to count its tokens.

in:  images, the encoder's image processor, and how to cut (`TilingConfig`);
out: `pixel_values [t, 3, H, W]`, image after image, and each image's `Tiles`.

Without pinpoints an image is one tile: padded to a square with the mean colour (LLaVA-1.5). With pinpoints (LLaVA-NeXT's
`process_anyres_image`, https://github.com/haotian-liu/LLaVA, `llava/mm_utils.py`) the first tile is the whole image squeezed
into a square; for the rest it is enlarged or shrunk to the best pinpoint, keeping its shape, centred on black, and cut.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from m3.nesting import LAYOUTS, Tiles, TilingConfig
from m3.processing.images import MAX_PIXELS, ImageSource, load_image, mean_colour, pad_to_square


@dataclass(frozen=True)
class TiledImages:
    """Images ready to be seen."""

    pixel_values: Float[Tensor, "t 3 h w"]
    images: list[Tiles]

    def entries(self, tiling: TilingConfig) -> dict[str, Tensor]:
        """The entries of a batch."""
        return {"pixel_values": self.pixel_values} | tile_entries(self.images, tiling)


def tile_entries(images: Sequence[Tiles], tiling: TilingConfig) -> dict[str, Tensor]:
    """What the model must be told of the tiles (m3/model/image_inputs.py); nothing for one plain tile per image."""
    entries: dict[str, list] = {}
    if tiling.kind != "single":
        entries["image_tiles"] = [tiles.number for tiles in images]
    if LAYOUTS[tiling.kind].needs_size:
        entries["image_sizes"] = [tiles.size for tiles in images]
    if any(tiles.tokens is not None for tiles in images):
        entries["tile_tokens"] = [tiles.tokens for tiles in images]
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in entries.items()}


def prepare_images(
    images: Sequence[ImageSource],
    image_processor: BaseImageProcessor,
    tiling: TilingConfig,
    max_pixels: int = MAX_PIXELS,
    fetch_urls: bool = False,
) -> TiledImages:
    """Load, cut, then let the encoder's own processor resize, rescale and normalise each tile.

    One image at a time, so that memory holds one decoded image however many are asked for.

    Raises:
        ValueError: no images; an image that cannot be loaded; an image processor that does not give `[3, H, W]` for a tile.
    """
    if not images:
        raise ValueError("prepare_images needs at least one image and got none")
    colour = mean_colour(image_processor)
    pixels: list[Tensor] = []
    known: list[Tiles] = []
    for source in images:
        image = load_image(source, max_pixels, fetch_urls)
        parts = cut(image, tiling) if tiling.grid_pinpoints else [pad_to_square(image, colour)]
        tiles = tiling.tiles((image.height, image.width))
        assert tiles.number == len(parts)
        pixels += [_normalised(part, image_processor) for part in parts]
        known.append(tiles)
    return TiledImages(torch.stack(pixels).float(), known)


def cut(image: Image.Image, tiling: TilingConfig) -> list[Image.Image]:
    """The whole image as a square, then the tiles of its best pinpoint, row by row."""
    side = tiling.tile_size
    assert side is not None  # TilingConfig wants it where there are pinpoints
    height, width = tiling.resolution((image.height, image.width))
    picture = Image.new("RGB", (width, height))
    shown = image.resize(_inside(image.size, (width, height)), Image.Resampling.BICUBIC)
    picture.paste(shown, ((width - shown.width) // 2, (height - shown.height) // 2))
    corners = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
    whole = image.resize((side, side), Image.Resampling.BICUBIC)
    return [whole, *(picture.crop((x, y, x + side, y + side)) for x, y in corners)]


def _inside(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image of `size`, in its shape, as large as `frame` allows; the free side is rounded up."""
    across, down = frame[0] / size[0], frame[1] / size[1]
    if across < down:
        return frame[0], min(math.ceil(size[1] * across), frame[1])
    return min(math.ceil(size[0] * down), frame[0]), frame[1]


def _normalised(tile: Image.Image, image_processor: BaseImageProcessor) -> Float[Tensor, "3 h w"]:
    pixels = torch.as_tensor(np.asarray(image_processor(tile, return_tensors="np")["pixel_values"]))
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise ValueError(
            f"{type(image_processor).__name__} gave pixel_values of shape {list(pixels.shape)} for one image; "
            "expected [1, 3, height, width]. Use an image processor that makes one fixed-size tensor per image"
        )
    return pixels[0]
