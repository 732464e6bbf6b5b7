"""Aria's image processing against its published rules, written out again here, and against
transformers where they agree.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AriaImageProcessorPil

from m3.nesting import Tiles
from m3.nesting.tiling import nearest_grid
from m3.processing.aria_tiles import GRIDS, AriaTileProcessor
from m3.processing.tiles import TileOptions

SIZES = [
    (768, 768),
    (1200, 500),
    (500, 1200),
    (2000, 500),
    (100, 100),
    (640, 480),
    (1000, 40),
    (31, 900),
    (980, 980),
]
RATIOS = [
    [1, 2], [1, 3], [1, 4], [1, 5], [1, 6], [1, 7], [1, 8], [2, 4], [2, 3], [2, 2], [2, 1], [3, 1], [3, 2], [4, 1], [4, 2],
    [5, 1], [6, 1], [7, 1], [8, 1],
]  # fmt: skip


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * height).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


def published(image: Image.Image, side: int, is_split: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rules of `aria/model/vision_processor.py`, step by step."""
    crops = [image]
    if is_split:
        wanted = image.width / image.height
        best, nearest = None, np.inf
        for w, h in RATIOS:
            distance = abs(wanted - w / h)
            ties = distance == nearest and image.width * image.height > side * side * w * h / 2
            if distance < nearest or ties:
                best, nearest = (w, h), distance
        large = np.asarray(image.resize((side * best[0], side * best[1]), Image.Resampling.BICUBIC))
        for row in range(best[1]):
            for column in range(best[0]):
                piece = large[row * side : row * side + side, column * side : column * side + side]
                crops.append(Image.fromarray(piece))
    pixels, masks = [], []
    for crop in crops:
        ratio = side / max(crop.size)
        width, height = (max(336, int(length * ratio)) for length in crop.size)
        width, height = (side, height) if crop.width >= crop.height else (width, side)
        inside = np.asarray(
            crop.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
        ) / np.float32(255)
        tile, mask = np.zeros((side, side, 3), np.float32), np.zeros((side, side), bool)
        tile[:height, :width], mask[:height, :width] = inside, True
        pixels.append(((tile - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))
        masks.append(mask)
    return np.stack(pixels), np.stack(masks)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_published_rules(size: tuple[int, int], is_split: bool) -> None:
    processor, image = AriaTileProcessor(), picture(*size)
    seen = processor.preprocess(image, TileOptions(490, is_split))
    pixels, mask = published(image, 490, is_split)
    assert np.array_equal(seen["pixel_mask"], mask)
    assert np.array_equal(seen["pixel_values"], pixels)
    assert processor.outline(size[1], size[0], TileOptions(490, is_split)) == Tiles(
        len(pixels), size[::-1], 128
    )


def test_equals_the_published_rules_at_980_pixels() -> None:
    for size, is_split in (((600, 400), False), ((700, 1300), True)):
        seen = AriaTileProcessor(split_image=is_split).preprocess(picture(*size))
        pixels, mask = published(picture(*size), 980, is_split)
        assert np.array_equal(seen["pixel_values"], pixels)
        assert np.array_equal(seen["pixel_mask"], mask)


@pytest.mark.parametrize("side", [490, 980])
@pytest.mark.parametrize("size", [(768, 768), (1200, 500), (500, 1200), (100, 60)])
def test_equals_transformers_where_an_image_is_one_tile(side: int, size: tuple[int, int]) -> None:
    ours = AriaTileProcessor().preprocess(picture(*size), TileOptions(side))
    theirs = AriaImageProcessorPil()(picture(*size), max_image_size=side, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


def test_a_square_split_at_490_is_the_whole_and_four_pieces() -> None:
    seen = AriaTileProcessor(max_image_size=490, split_image=True).preprocess(picture(768, 768))
    assert seen["pixel_values"].shape == (5, 3, 490, 490)
    assert seen["pixel_mask"].all()


def test_the_nineteen_grids_and_their_ties() -> None:
    assert [[columns, rows] for rows, columns in GRIDS] == RATIOS
    for rows, columns in set(GRIDS) - {(2, 4), (4, 2)}:
        assert nearest_grid((20 * rows, 20 * columns), 490, GRIDS) == (rows, columns)
    # 1:2 is also 2:4, which a picture of more than half of its pixels is worth
    assert nearest_grid((1380, 690), 490, GRIDS) == (2, 1)
    assert nearest_grid((1400, 700), 490, GRIDS) == (4, 2)
    assert nearest_grid((2000, 1000), 980, GRIDS) == (2, 1)


def test_sizes_that_the_weights_do_not_know_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"max_image_size 600 is none of the sizes this model "
        r"reads: 490, 980",
    ):
        AriaTileProcessor(max_image_size=600)
    with pytest.raises(ValueError, match=r"max_image_size 1000 is none"):
        AriaTileProcessor().preprocess(picture(9, 9), TileOptions(1000))
    assert AriaTileProcessor().tile_tokens() == 256
    assert AriaTileProcessor().tile_tokens(TileOptions(490)) == 128


def test_saved_and_loaded_by_its_class(tmp_path: Path) -> None:
    AriaTileProcessor(max_image_size=490, split_image=True, min_image_size=300).save_pretrained(
        tmp_path
    )
    loaded = AriaTileProcessor.from_pretrained(tmp_path)
    assert (loaded.max_image_size, loaded.split_image, loaded.min_image_size) == (490, True, 300)
    assert torch.equal(
        loaded.preprocess(picture(64, 90))["pixel_values"],
        AriaTileProcessor(min_image_size=300).preprocess(picture(64, 90), TileOptions(490, True))[
            "pixel_values"
        ],
    )
