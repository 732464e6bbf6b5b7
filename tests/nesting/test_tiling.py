"""Tilings: counts equal what is assembled for every row; anyres equals LLaVA-NeXT's
code, written out here.
"""

import itertools
import json

import pytest
import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from m3.nesting import (
    NESTINGS,
    TILINGS,
    ImageReader,
    SingleTile,
    Tiles,
    UnreachableScaleError,
    get_nesting,
    make_tiling,
    pool_grid,
    take_prefix,
)
from m3.nesting.image_reader import Reduce
from m3.nesting.tiling import UNPAD_ROUNDINGS, AnyRes, AspectRatioTiles, PinpointTiles

PINPOINTS = [[672, 336], [336, 672], [672, 672], [336, 1008], [1008, 336]]
EXAMPLES = {
    "single": SingleTile(),
    "tiles": PinpointTiles(tile_size=336, grid_pinpoints=PINPOINTS),
    "anyres": AnyRes(tile_size=336, grid_pinpoints=PINPOINTS),
    "internvl": AspectRatioTiles(tile_size=336),
}
SIZES = [
    (336, 336),
    (420, 640),
    (640, 420),
    (100, 1000),
    (1000, 100),
    (333, 500),
    (1, 3),
    (2000, 1999),
]


def by(nesting: str) -> Reduce:
    """The parameterless reducer of a nesting."""
    return lambda tokens, scale, grid: (
        pool_grid(tokens, scale, grid)
        if isinstance(get_nesting(nesting).shape(64, 4), tuple)
        else take_prefix(tokens, scale)
    )


pooled = by("grid_pool")


def reader(
    kind: str, nesting: str = "grid_pool", grid: int | tuple[int, int] = (24, 24)
) -> ImageReader:
    return ImageReader(get_nesting(nesting), EXAMPLES[kind], grid)


def test_every_tiling_is_tested() -> None:
    assert set(EXAMPLES) == set(TILINGS)


def test_the_real_counts_of_llava_next() -> None:
    """A square image in 2 x 2 tiles and the whole image in front, newlines counted (the paper's
    tables leave them out).
    """
    tiles = EXAMPLES["anyres"].tiles((672, 672))
    assert tiles == Tiles(5, (672, 672))
    assert [reader("anyres").count(scale, tiles) for scale in (576, 144, 36, 9, 1)] == [
        2928,
        744,
        192,
        51,
        7,
    ]
    assert [reader("tiles").count(scale, tiles) for scale in (576, 144, 36, 9, 1)] == [
        2880,
        720,
        180,
        45,
        5,
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "nesting"), [*itertools.product(TILINGS, NESTINGS)])
def test_count_equals_what_is_read(kind: str, nesting: str, size: tuple[int, int]) -> None:
    if kind == "anyres" and not isinstance(get_nesting(nesting).shape(64, 4), tuple):
        with pytest.raises(
            ValueError,
            match="tokens must stand on a grid: use the nesting grid_pool, or tiling tiles",
        ):
            reader(kind, nesting, 64).count(4, EXAMPLES[kind].tiles(size))
        return
    subject = reader(kind, nesting)
    tiles = EXAMPLES[kind].tiles(size)
    features, newline = torch.randn(tiles.number, 576, 2), torch.randn(2)
    for scale in (1, 9, 64, 576):
        (sequence,) = subject.read_images(features, scale, [tiles], newline, by(nesting))
        assert sequence.shape == (subject.count(scale, tiles), 2)


@pytest.mark.parametrize("kind", TILINGS)
def test_images_of_different_tiles_are_read_together_as_apart(kind: str) -> None:
    images = [EXAMPLES[kind].tiles(size) for size in SIZES]
    features, newline = torch.randn(sum(tiles.number for tiles in images), 576, 3), torch.randn(3)
    parts = features.split([tiles.number for tiles in images])
    together = reader(kind).read_images(features, 36, images, newline, pooled)
    for part, tiles, sequence in zip(parts, images, together, strict=True):
        assert torch.equal(
            reader(kind).read_images(part, 36, [tiles], newline, pooled)[0], sequence
        )


def test_tokens_behind_a_shorter_tile_are_never_read() -> None:
    """Tiles of 128 and of 256 tokens in one padded tensor (Aria at 490 and at 980 pixels)."""
    subject = reader("tiles", "query_prefix", 256)
    images = [Tiles(2, tokens=128), Tiles(1, tokens=256)]
    features = torch.randn(3, 256, 2)
    features[:2, 128:] = torch.nan
    read = subject.read_images(features, 128, images, None, by("query_prefix"))
    assert (
        [len(sequence) for sequence in read]
        == [256, 128]
        == [subject.count(128, tiles) for tiles in images]
    )
    assert not torch.cat(read).isnan().any()
    assert torch.equal(read[0], features[:2, :128].flatten(0, 1))
    for ask in (
        lambda: subject.count(200, images[0]),
        lambda: subject.read_images(features, 200, images, None, by("query_prefix")),
    ):
        with pytest.raises(
            UnreachableScaleError,
            match="scale 200 cannot be reached exactly from a set of 128 tokens",
        ):
            ask()


# ------------------------------------------------- LLaVA-NeXT, with (width, height) and channels
# first as it has them
def published_resolution(size: tuple[int, int], resolutions: list[list[int]]) -> tuple[int, int]:
    best, most, least = (0, 0), 0, float("inf")
    for width, height in resolutions:
        scale = min(width / size[0], height / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        wasted = width * height - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (width, height), shown, wasted
    return best


def published_unpad(picture: Tensor, size: tuple[int, int], digits: int | None) -> Tensor:
    width, height = size
    rows, columns = picture.shape[1:]
    if width / height > columns / rows:
        kept = height * (columns / width)
        padding = (rows - int(kept if digits is None else round(kept, digits))) // 2
        return picture[:, padding : rows - padding]
    kept = width * (rows / height)
    padding = (columns - int(kept if digits is None else round(kept, digits))) // 2
    return picture[:, :, padding : columns - padding]


def published(tokens: Tensor, size: tuple[int, int], newline: Tensor, digits: int | None) -> Tensor:
    width, height = published_resolution(size, [[w, h] for h, w in PINPOINTS])
    side = int(tokens.shape[1] ** 0.5)
    picture = tokens[1:].view(height // 336, width // 336, side, side, -1)
    picture = picture.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    picture = published_unpad(picture, size, digits)
    picture = torch.cat([picture, newline[:, None, None].expand(*picture.shape[:-1], 1)], dim=-1)
    return torch.cat([tokens[0], picture.flatten(1, 2).transpose(0, 1)])


@pytest.mark.parametrize("scale", [1, 36])
@pytest.mark.parametrize(("rounding", "digits"), [("truncate", None), ("seven_digits", 7)])
def test_anyres_equals_the_published_code(rounding: str, digits: int | None, scale: int) -> None:
    tiling = AnyRes(tile_size=336, grid_pinpoints=PINPOINTS, unpad_rounding=rounding)
    subject = ImageReader(get_nesting("grid_pool"), tiling, (24, 24))
    newline = torch.randn(2)
    sizes = [
        *SIZES,
        (55, 88),
        (94, 94),
        *itertools.product(range(17, 1200, 217), range(13, 1200, 231)),
    ]
    for height, width in sizes:
        tiles = tiling.tiles((height, width))
        tokens = torch.randn(tiles.number, scale, 2)
        mine = subject.layout.assemble(tokens, subject.shape(scale, None), tiles, newline)
        assert torch.equal(mine, published(tokens, (width, height), newline, digits)), (
            height,
            width,
        )


@pytest.mark.parametrize(
    ("size", "scale", "truncated", "rounded"),
    [
        ((55, 88), 576, 926, 976),
        ((352, 748), 576, 1800, 1848),
        ((94, 94), 9, 17, 25),
        ((49, 49), 1, 1, 5),
    ],
)
def test_the_two_roundings_differ_and_each_is_its_own(
    size: tuple[int, int], scale: int, truncated: int, rounded: int
) -> None:
    """Where 55 * (48 / 88) is 29.999999999999996: LLaVA-NeXT's code truncates, transformers rounds
    to seven digits first.

    Of the 116 964 sizes from 1 x 1 to 1024 x 1024 in steps of 3, this changes 6 at 576 tokens, none
    at 144, 12 at 36, 2 at 9 and 7 at 1. At 1 token per tile, LLaVA-NeXT's code leaves of a square
    of 49 pixels the whole image alone.
    """
    counts = []
    for rounding in UNPAD_ROUNDINGS:
        tiling = AnyRes(tile_size=336, grid_pinpoints=PINPOINTS, unpad_rounding=rounding)
        subject = ImageReader(get_nesting("grid_pool"), tiling, (24, 24))
        counts.append(subject.count(scale, tiling.tiles(size)))
    assert counts == [truncated, rounded]


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (1, 1), (2, 9), (7, 7)])
def test_the_grid_nearest_to_a_shape_is_that_of_transformers(least: int, most: int) -> None:
    """Every shape up to 40 x 40 in steps of a small and of a large image, where equal shapes of
    more tiles are chosen by the number of pixels.
    """
    tiling = AspectRatioTiles(tile_size=448, min_tiles=least, max_tiles=most)
    tile_counts = set()
    for rows, columns, unit in itertools.product(range(1, 41), range(1, 41), (7, 40, 113)):
        size = (rows * unit, columns * unit)
        columns_and_rows = get_optimal_tiled_canvas(size, (448, 448), least, most)
        assert tiling.cut_grid(size) == columns_and_rows[::-1], size
        grid_tiles = columns_and_rows[0] * columns_and_rows[1]
        assert tiling.tiles(size) == Tiles(grid_tiles + (grid_tiles > 1), size)
        tile_counts.add(grid_tiles)
    assert (min(tile_counts), max(tile_counts)) == (least, most)
    assert tiling.largest().number == most + (most > 1)


def test_the_whole_image_is_the_last_of_several_tiles() -> None:
    tiles, whole = EXAMPLES["internvl"].frames((300, 600))
    assert (tiles.grid, tiles.size) == ((1, 2), (336, 672))
    assert (whole.grid, whole.size) == ((1, 1), (336, 336))
    (only,) = EXAMPLES["internvl"].frames((100, 101))
    assert (only.grid, only.size, only.keeps_shape) == ((1, 1), (336, 336), False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "any_res"},
            "unknown tiling kind 'any_res'; known: single, tiles, anyres, internvl",
        ),
        ({"kind": "anyres"}, "tiling anyres needs grid_pinpoints"),
        (
            {"kind": "internvl"},
            "the tiling internvl needs tile_size; its settings are kind, tile_size, min_tiles",
        ),
        (
            {"kind": "internvl", "tile_size": 448, "min_tiles": 7, "max_tiles": 6},
            "min_tiles from 1 to max_tiles, got min_tiles 7 and max_tiles 6",
        ),
        (
            {"kind": "internvl", "tile_size": 448, "grid_pinpoints": PINPOINTS},
            "the tiling internvl has no grid_pinpoints",
        ),
        (
            {"grid_pinpoints": PINPOINTS, "tile_size": 336},
            "the tiling single has no grid_pinpoints; its settings are kind, tile_size",
        ),
        (
            {"kind": "anyres", "grid_pinpoints": PINPOINTS},
            "must be multiples of tile_size, which is None",
        ),
        (
            {"kind": "anyres", "grid_pinpoints": PINPOINTS, "tile_size": 384},
            "must be multiples of tile_size, which is 384",
        ),
        (
            {
                "kind": "anyres",
                "grid_pinpoints": PINPOINTS,
                "tile_size": 336,
                "unpad_rounding": "up",
            },
            "unknown unpad_rounding 'up'; known: truncate, seven_digits",
        ),
        (
            {"unpad_rounding": "seven_digits"},
            "the tiling single has no unpad_rounding; its settings are kind, tile_size",
        ),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tiling(settings)


@pytest.mark.parametrize("kind", TILINGS)
def test_saved_settings_are_read_back(kind: str) -> None:
    """Also beside settings of other tilings at their defaults, which older files state of all."""
    stated = {"grid_pinpoints": [], "unpad_rounding": "truncate"} | EXAMPLES[kind].to_dict()
    assert make_tiling(json.loads(json.dumps(stated))) == EXAMPLES[kind]


def test_images_that_contradict_the_tiling() -> None:
    with pytest.raises(
        ValueError, match="single takes one tile per image, but an image has 2 tiles"
    ):
        reader("single").count(4, Tiles(2))
    with pytest.raises(ValueError, match="needs the size of each image in pixels: image_sizes"):
        reader("anyres").count(4, Tiles(5))
    with pytest.raises(
        ValueError,
        match="672 x 672 pixels has 1 . 2 x 2 tiles by grid_pinpoints, but image_tiles says 3",
    ):
        reader("anyres").count(4, Tiles(3, (672, 672)))
    with pytest.raises(ValueError, match="at least 1 tile of at least 1 x 1 pixels"):
        Tiles(1, (0, 5))
