"""Where the sample browser says that visual tokens stand on a picture."""

from dataclasses import replace

import pytest

from m3.evaluation.report.token_grids import drawn, grid_note
from m3.evaluation.results.run_folder import Example, ModelRow
from m3.nesting import SingleTile
from m3.nesting.tiling import AnyRes, AspectRatioTiles

SINGLE = SingleTile().to_dict()
ANYRES = AnyRes(tile_size=24, grid_pinpoints=[[24, 48], [48, 24], [48, 48]]).to_dict()
SIDE = 24
SQUARE = ModelRow("m", "m", "w", [144], [12, 12], "grid_pool", 1, "nesting", "", 0, SINGLE, SIDE)
TILED = ModelRow("m", "m", "w", [36], [6, 6], "grid_pool", 1, "nesting", "", 0, ANYRES, SIDE)
INTERNVL = replace(TILED, tiling=AspectRatioTiles(tile_size=24, max_tiles=6).to_dict())
QUERIES = ModelRow("m", "m", "w", [4], [9], "query_prefix", 1, "nesting", "", 0, SINGLE, SIDE)


def example(*size: int) -> Example:
    return Example("t", 0, "?", "!", "t.png", list(size))


@pytest.mark.parametrize("scale", [1, 4, 9, 36, 144])
def test_a_padded_picture_is_parted_into_the_scale(scale: int):
    found = drawn(SQUARE, example(30, 20), [scale])[scale]
    (view,) = found["views"]
    assert view["cells"][0] * view["cells"][1] == scale == found["tokens"]
    assert (view["frame"], view["tiles"], view["left_out"]) == ((1, 1), (1, 1), (0, 0))


def test_a_scale_of_another_model_is_left_out():
    assert list(drawn(SQUARE, example(30, 20), [1, 25, 144, 576])) == [1, 144]


@pytest.mark.parametrize(
    ("size", "scale", "frame", "cells", "tiles", "left_out"),
    [
        ((48, 48), 36, (48, 48), (12, 12), (2, 2), (0, 0)),
        (
            (20, 44),
            36,
            (24, 48),
            (6, 12),
            (1, 2),
            (0, 0),
        ),  # 5.45 of 6 rows are picture: (6 - 5) // 2 are left out above
        ((8, 44), 36, (24, 48), (6, 12), (1, 2), (2, 0)),  # 2.18 of 6
        ((40, 10), 36, (48, 24), (12, 6), (2, 1), (0, 1)),  # 3 of 6 columns
        ((40, 10), 1, (48, 24), (2, 1), (2, 1), (0, 0)),
    ],
)
def test_a_cut_picture_is_seen_in_tiles_and_as_a_whole(
    size: tuple[int, int], scale: int, frame: tuple, cells: tuple, tiles: tuple, left_out: tuple
):
    found = drawn(TILED, example(*size), [scale])[scale]
    pieces, whole = found["views"]
    assert (pieces["frame"], pieces["cells"], pieces["tiles"], pieces["left_out"]) == (
        frame,
        cells,
        tiles,
        left_out,
    )
    side = {36: 6, 1: 1}[scale]
    assert (whole["frame"], whole["cells"], whole["tiles"]) == (size, (side, side), (1, 1))
    rows, columns = (cells[i] - 2 * left_out[i] for i in (0, 1))
    assert found["tokens"] == scale + rows * (columns + 1)  # a learned vector ends each row


def test_a_stretched_picture_is_seen_in_tiles_and_once_more_where_there_are_several():
    found = drawn(INTERNVL, example(20, 44), [36])[36]
    tiles, whole = found["views"]
    assert (tiles["frame"], tiles["cells"], tiles["tiles"]) == ((20, 44), (6, 12), (1, 2))
    assert (whole["frame"], whole["cells"], whole["tiles"]) == ((20, 44), (6, 6), (1, 1))
    assert found["tokens"] == 3 * 36
    found = drawn(INTERNVL, example(20, 20), [36])[36]
    (only,) = found["views"]
    assert (only["frame"], only["cells"], found["tokens"]) == ((20, 20), (6, 6), 36)
    assert "stretched over tiles" in grid_note(INTERNVL)


def test_what_cannot_be_drawn_is_said():
    assert drawn(QUERIES, example(30, 20), [1, 4]) == {}
    assert "do not stand for cells of one" in grid_note(QUERIES)
    control = replace(SQUARE, name="m+random", method="random", base="m")
    assert drawn(control, example(30, 20), [1, 4]) == {}
    assert grid_note(control) == "No grid is drawn: m+random does not average cells."
    assert drawn(replace(SQUARE, method="pooling"), example(30, 20), [4])[4]["views"][0][
        "cells"
    ] == (2, 2)


def test_the_note_says_how_the_picture_is_seen():
    assert "padded to a square" in grid_note(SQUARE) and "in tiles (thick lines)" in grid_note(
        TILED
    )
