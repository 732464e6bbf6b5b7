"""Budgets: how they are written, ordered and refused."""

import pytest

from m3.nesting import Budget, make_tiling, read_budget, read_ladder, resolutions
from m3.nesting.layouts import Tiles


@pytest.mark.parametrize(
    ("setting", "budget"),
    [(36, Budget(36)), ("36", Budget(36)), ("36@48", Budget(36, 48)), (Budget(4), Budget(4))],
)
def test_settings_are_read(setting: int | str | Budget, budget: Budget) -> None:
    assert read_budget(setting) == budget
    assert read_budget(budget.setting) == budget


@pytest.mark.parametrize("setting", ["", "36@", "@48", "36@x", "3.5", "36x4", True])
def test_what_is_no_budget_is_refused(setting: object) -> None:
    with pytest.raises(ValueError, match="no visual budget: expected .* such as 36@48"):
        read_budget(setting)  # pyright: ignore[reportArgumentType]


def test_a_resolution_of_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        read_budget("36@0")


def test_ladders_are_in_order() -> None:
    ladder = read_ladder([144, "9@48", 9, "36@48", "9@24", 9])
    assert [budget.setting for budget in ladder] == ["9@24", "9@48", 9, "36@48", 144]
    assert resolutions(ladder) == (24, 48, None)


ANYRES = make_tiling(
    {
        "kind": "anyres",
        "tile_size": 336,
        "grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    }
)


@pytest.mark.parametrize(
    ("resolution", "tiles", "tokens"),
    [
        (None, 1 + 4, 576 + 48 * 49),  # a square image: the whole, then 2 x 2 tiles
        (1008, 1 + 4, 576 + 48 * 49),
        (672, 1 + 4, 576 + 48 * 49),
        # the whole image alone and one row end: LLaVA-NeXT's code for a single patch
        # (prepare_inputs_labels_for_multimodal, llava/model/llava_arch.py)
        (336, 1, 576 + 1),
    ],
)
def test_anyres_counts_at_each_resolution(resolution: int | None, tiles: int, tokens: int) -> None:
    image = ANYRES.tiles((900, 900), resolution)
    assert image == Tiles(tiles, (900, 900), resolution=resolution)
    assert ANYRES.layout.count((24, 24), image) == tokens


def test_a_lower_resolution_cuts_into_fewer_tiles() -> None:
    tall = (2000, 600)
    assert ANYRES.tiles(tall).number == 1 + 3
    assert ANYRES.tiles(tall, 672).number == 1 + 2
    assert ANYRES.largest(336) == Tiles(1, (336, 336), resolution=336)


@pytest.mark.parametrize(
    ("tiling", "resolution", "message"),
    [
        (ANYRES, 500, "between that of the whole image alone, up to 336 .* 672, 1008"),
        (
            make_tiling({"kind": "internvl", "tile_size": 32, "min_tiles": 4, "max_tiles": 6}),
            40,
            "leaves no grid of 4 or more tiles of 32 pixels",
        ),
    ],
)
def test_a_resolution_without_tiles_is_refused(
    tiling: object, resolution: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiling.tiles((100, 100), resolution)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("resolution", "tiles"), [(None, 1 + 6), (96, 1 + 6), (64, 1 + 4), (32, 1)]
)
def test_internvl_cuts_by_the_longest_side(resolution: int | None, tiles: int) -> None:
    tiling = make_tiling({"kind": "internvl", "tile_size": 32, "max_tiles": 6})
    assert tiling.tiles((64 * 2, 96 * 2), resolution).number == tiles
