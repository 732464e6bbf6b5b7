"""The grid of visual tokens on the picture they come from: for people, not for the model.

In: an image, a processor, a budget. Out: the picture as the encoder sees it at the resolution of
the budget (`canvas`), and the lines between the cells that are pooled into one token each
(`token_lines`), in units of the picture's sides. Where the picture itself is drawn by somebody else
(a page), its size is enough: `views`.
"""

from dataclasses import dataclass

from PIL import Image

from m3.nesting import Frame, Grid, ImageReader, Size
from m3.nesting.tiling import finest_first
from m3.processing.tiles import TileOptions
from m3.processing.token_counts import ANY_SIZE, BudgetSetting, ScaleArithmetic

Line = tuple[float, float, float, float]
"""x1, y1, x2, y2 on a picture of 1 x 1."""


@dataclass(frozen=True)
class Canvas:
    """The model's view of an image as one picture; `tiles`: (rows, columns) of tiles that it is cut
    into.
    """

    picture: Image.Image
    tiles: Size = (1, 1)


def canvas(image: Image.Image, processor: ScaleArithmetic, resolution: int | None = None) -> Canvas:
    """An upright RGB image as the encoder sees it at a resolution: padded, or as its tiles.

    Where it is cut into tiles, it is seen as a whole besides.
    """
    options = TileOptions(resolution=resolution)
    return Canvas(*processor.tile_maker.overview(image, options))


def token_lines(seen: Canvas, processor: ScaleArithmetic, setting: BudgetSetting) -> list[Line]:
    """Between the cells of all tiles on the canvas of the budget's resolution; none where tokens
    are learned queries, or where there is one cell.
    """
    budget = processor.budget(setting)
    options = TileOptions(resolution=budget.resolution)
    tiles = processor.tile_maker.outline(lambda: ANY_SIZE, options)
    shape = processor.reader.shape(budget.tokens, tiles.tokens)
    return (
        grid_lines((shape[0] * seen.tiles[0], shape[1] * seen.tiles[1]))
        if isinstance(shape, tuple)
        else []
    )


@dataclass(frozen=True)
class View:
    """One way in which an image is seen: in the middle of a frame, as large as that allows,
    parted into cells of a token each.
    """

    frame: Size  # (height, width), of which the ratio matters
    cells: Size  # (rows, columns) over the whole frame
    tiles: Size = (1, 1)  # (rows, columns) of tiles that the frame is cut into
    # (rows, columns) of cells on each side that are no tokens, since they show padding
    left_out: Size = (0, 0)


def views(reader: ImageReader, size: Size, scale: int, resolution: int | None = None) -> list[View]:
    """Views of an image of `size` (height, width) at `scale`: padded to a square, or whole and in
    tiles. `reader`: of the grid of a tile of an image seen at `resolution` (None: the largest).

    `resolution`: that the image is seen at; `reader` has the grid of a tile seen so. None where
    tokens are learned queries, which have no place. Where an image is stretched over a frame, its
    tiles stretch with it, so the frame of that view is the image itself.
    """
    shape = reader.shape(scale, None)
    if not isinstance(shape, tuple):
        return []
    left_out = reader.layout.padding(shape, reader.tiling.tiles(size, resolution))
    frames = finest_first(reader.tiling.frames(size, resolution))
    return [_view(frame, size, shape, left_out) for frame in frames]


def _view(frame: Frame, image_size: Size, token_grid: Size, left_out: Size) -> View:
    (rows, columns), (tile_rows, tile_columns) = frame.grid, token_grid
    cells = (rows * tile_rows, columns * tile_columns)
    if not frame.keeps_shape:
        return View(image_size, cells, frame.grid)
    return View(frame.size or (1, 1), cells, frame.grid, left_out)


def grid_lines(shape: Grid) -> list[Line]:
    """Between `shape` (rows, columns) cells: upright ones, then level ones.

    None for an ordered list of tokens.
    """
    if not isinstance(shape, tuple):
        return []
    rows, columns = shape
    upright = [(i / columns, 0.0, i / columns, 1.0) for i in range(1, columns)]
    return upright + [(0.0, i / rows, 1.0, i / rows) for i in range(1, rows)]
