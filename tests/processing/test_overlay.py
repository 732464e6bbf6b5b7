import math
from typing import Any

import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from m3.nesting import GridPool, ImageReader, make_tiling, read_budget
from m3.nesting.tiling import AnyRes
from m3.processing.aria_tiles import AriaTileProcessor
from m3.processing.token_counts import ScaleArithmetic
from m3.processing.token_grid import canvas, token_lines, views

PLAIN = SiglipImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5, 0.5, 0.5])


class Known(ScaleArithmetic):
    """What the overlay asks a processor."""

    def __init__(
        self, nesting: str, grid: Any, image_processor: Any = PLAIN, **tiling: Any
    ) -> None:
        self.grid, self.image_processor = grid, image_processor
        self.nesting, self.tiling = (
            {"kind": nesting, "trained_scales": [1]},
            make_tiling(tiling).to_dict(),
        )


@pytest.mark.parametrize("scale", [1, 4, 9, 36, 144])
def test_lines_part_a_padded_picture_into_the_scale(scale: int):
    processor = Known("grid_pool", (12, 12))
    seen = canvas(Image.new("RGB", (30, 20)), processor)
    assert seen.picture.size == (30, 30) and seen.tiles == (1, 1)
    assert seen.picture.getpixel((15, 2)) == (127, 127, 127) and seen.picture.getpixel(
        (15, 15)
    ) == (0, 0, 0)
    lines = token_lines(seen, processor, scale)
    upright = [x1 for x1, y1, x2, y2 in lines if x1 == x2 and (y1, y2) == (0, 1)]
    level = [y1 for x1, y1, x2, y2 in lines if y1 == y2 and (x1, x2) == (0, 1)]
    assert (len(upright) + 1) * (len(level) + 1) == scale and len(lines) == len(upright) + len(
        level
    )
    assert all(0 < place < 1 for place in upright + level)


@pytest.mark.parametrize(
    ("setting", "cells"), [("1@4", 1), ("4@4", 4), ("36@4", 36), ("4@8", 4), ("36@8", 36)]
)
def test_lines_are_those_of_the_grid_at_the_budget_s_resolution(setting: str, cells: int):
    processor = Known("grid_pool", (12, 12))
    side = read_budget(setting).resolution
    lines = token_lines(canvas(Image.new("RGB", (8, 8)), processor, side), processor, setting)
    assert len(lines) == 2 * (math.isqrt(cells) - 1)
    with pytest.raises(ValueError, match="scale 144 cannot be reached"):
        token_lines(canvas(Image.new("RGB", (8, 8)), processor, 4), processor, "144@4")


def test_a_low_resolution_is_drawn_on_fewer_tiles():
    processor = Known(
        "grid_pool", (4, 4), kind="anyres", tile_size=8, grid_pinpoints=[[8, 16], [16, 16]]
    )
    picture = Image.new("RGB", (40, 40), "red")
    seen = {side: canvas(picture, processor, side) for side in (4, 8, None)}
    assert [canvas_.picture.size for canvas_ in seen.values()] == [(4, 4), (8, 8), (16, 16)]
    assert [canvas_.tiles for canvas_ in seen.values()] == [(1, 1), (1, 1), (2, 2)]
    lines = {
        setting: len(token_lines(seen[read_budget(setting).resolution], processor, setting))
        for setting in ("4@4", "4@8", 4)
    }
    assert lines == {"4@4": 1 + 1, "4@8": 1 + 1, 4: 3 + 3}


def test_views_follow_the_tiles_of_a_resolution():
    tiling = AnyRes(tile_size=8, grid_pinpoints=[[8, 16], [16, 16]])
    full, small = (ImageReader(GridPool(), tiling, grid) for grid in ((4, 4), (2, 2)))
    assert [view.cells for view in views(full, (40, 40), 4)] == [(4, 4), (2, 2)]
    assert [view.cells for view in views(full, (40, 40), 4, 8)] == [(2, 2)]
    assert [view.cells for view in views(small, (40, 40), 4, 4)] == [(2, 2)]


def test_the_grid_goes_over_all_tiles():
    processor = Known("grid_pool", (4, 4), kind="anyres", tile_size=8, grid_pinpoints=[[8, 16]])
    seen = canvas(Image.new("RGB", (40, 20), "red"), processor)
    assert seen.picture.size == (16, 8) and seen.tiles == (1, 2)
    assert len(token_lines(seen, processor, 4)) == 3 + 1  # 2 x 4 cells
    assert len(token_lines(seen, processor, 1)) == 1  # the border between the tiles


def test_an_image_is_stretched_over_the_tiles_of_internvl():
    processor = Known("grid_pool", (4, 4), kind="internvl", tile_size=8, max_tiles=4)
    seen = canvas(Image.new("RGB", (40, 10), "red"), processor)
    assert seen.picture.size == (32, 8) and seen.tiles == (1, 4)
    assert seen.picture.getpixel((31, 7)) == (255, 0, 0)
    assert len(token_lines(seen, processor, 4)) == 7 + 1  # 2 x 8 cells
    small = canvas(Image.new("RGB", (5, 5)), processor)
    assert small.picture.size == (8, 8) and small.tiles == (1, 1)


def test_learned_queries_have_no_place():
    processor = Known("query_prefix", 128, AriaTileProcessor(), kind="tiles")
    picture = Image.new("RGB", (30, 20))
    seen = canvas(picture, processor)
    assert seen.picture is picture
    assert token_lines(seen, processor, 9) == []
