"""Tiles of InternVL against transformers' image processor: their number, order and pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GotOcr2ImageProcessorPil, SiglipImageProcessorPil

from m3.nesting.tiling import AspectRatioTiles
from m3.processing.tiles import EncoderTiles, prepare_images

SIDE = 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = [
    *((32, 32), (33, 31), (20, 200), (200, 20), (64, 48), (48, 64), (100, 75), (61, 97)),
    *((7, 5), (300, 299), (129, 257), (1, 40), (90, 30), (96, 64), (17, 53), (250, 40)),
]


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(noise)


@pytest.mark.parametrize(("least", "most"), [(1, 12), (3, 5), (1, 1)])
def test_tiles_equal_those_of_transformers(least: int, most: int) -> None:
    """Within 1e-6, a rounding of the normalisation; levels of the resized tiles are equal."""
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
    theirs = GotOcr2ImageProcessorPil(
        **settings, crop_to_patches=True, min_patches=least, max_patches=most
    )
    tiling = AspectRatioTiles(tile_size=SIDE, min_tiles=least, max_tiles=most)
    maker = EncoderTiles(SiglipImageProcessorPil(**settings, resample=3), tiling, (16, 16))
    images = [picture(*size) for size in SIZES]
    ours = prepare_images(images, maker)
    expected = theirs(images, return_tensors="pt")
    assert [tiles.number for tiles in ours.images] == expected["num_patches"].tolist()
    torch.testing.assert_close(ours.pixel_values, expected["pixel_values"], rtol=0, atol=1e-6)
    assert len({tiles.number for tiles in ours.images}) > (most > 1)
