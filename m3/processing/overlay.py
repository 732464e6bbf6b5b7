"""The grid of visual tokens on the picture they come from: for people, not for the model.

In: an image, a processor, a scale. Out: the picture as the encoder sees it (`canvas`), and the lines between the cells that are
pooled into one token each (`token_lines`), in units of the picture's sides.
"""

from dataclasses import dataclass

from PIL import Image

from m3.nesting import Grid
from m3.nesting.layout import Size
from m3.processing.aria_tiles import AriaTileProcessor
from m3.processing.images import mean_colour, pad_to_square
from m3.processing.scales import ScaleArithmetic
from m3.processing.tiles import enlarged

Line = tuple[float, float, float, float]
"""x1, y1, x2, y2 on a picture of 1 x 1."""


@dataclass(frozen=True)
class Canvas:
    """What is seen of an image, as one picture; `tiles`: (rows, columns) of tiles that it is cut into."""

    picture: Image.Image
    tiles: Size = (1, 1)


def canvas(image: Image.Image, processor: ScaleArithmetic) -> Canvas:
    """An upright RGB image, padded as the encoder sees it. Where it is cut into tiles, it is seen as a whole besides."""
    if isinstance(processor.image_processor, AriaTileProcessor):  # its tokens have no place on the picture
        return Canvas(image)
    tiling = processor.reader.tiling
    if not tiling.grid_pinpoints:
        return Canvas(pad_to_square(image, mean_colour(processor.image_processor)))
    tiles = tiling.tile_grid((image.height, image.width))
    assert isinstance(tiles, tuple)
    return Canvas(enlarged(image, tiling), tiles)


def token_lines(seen: Canvas, processor: ScaleArithmetic, scale: int) -> list[Line]:
    """Between the cells of all tiles; none where tokens are learned queries, or where there is one cell."""
    shape = processor.reader.shape(scale, None)
    return grid_lines((shape[0] * seen.tiles[0], shape[1] * seen.tiles[1])) if isinstance(shape, tuple) else []


def grid_lines(shape: Grid) -> list[Line]:
    """Between `shape` (rows, columns) cells: upright ones, then level ones. None for an ordered list of tokens."""
    if not isinstance(shape, tuple):
        return []
    rows, columns = shape
    upright = [(i / columns, 0.0, i / columns, 1.0) for i in range(1, columns)]
    return upright + [(0.0, i / rows, 1.0, i / rows) for i in range(1, rows)]
