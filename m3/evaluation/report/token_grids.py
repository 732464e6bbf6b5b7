"""Grid of visual tokens on an example's picture, for the sample browser of report.html.

In: a model's row and an example of a run. Out: frames, cells and tiles at each scale as JSON for
report.js, and in words what is drawn or why nothing is.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from m3.evaluation.results.run_folder import Example, ModelRow
from m3.evaluation.token_reduction.table import OWN
from m3.nesting import GridPool, ImageReader, get_nesting, make_tiling
from m3.processing.token_grid import views

POOLING = "pooling"


def is_on_grid(model: ModelRow) -> bool:
    """Tell whether each token of the model stands for one cell of a grid."""
    has_cells = isinstance(get_nesting(model.nesting), GridPool)
    return model.method == POOLING or (model.method == OWN and has_cells)


def reader_of(model: ModelRow) -> ImageReader:
    """The arithmetic of a model on a grid."""
    grid = (model.grid[0], model.grid[1]) if len(model.grid) == 2 else model.grid[0]
    return ImageReader(get_nesting("grid_pool"), make_tiling(model.tiling), grid)


def drawn(model: ModelRow, example: Example, scales: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Scale -> tokens of the picture and its views, for the scales that the model reaches.

    None for tokens without a place.
    """
    if not is_on_grid(model):
        return {}
    reader = reader_of(model)
    image_size = (example.size[0], example.size[1])
    reachable_scales = set(reader.nesting.reachable(reader.grid))
    return {
        scale: {
            "tokens": reader.count(scale, reader.tiling.tiles(image_size)),
            "views": [asdict(view) for view in views(reader, image_size, scale)],
        }
        for scale in scales
        if scale in reachable_scales
    }


def grid_note(model: ModelRow) -> str:
    """A note for readers of the picture."""
    if model.method not in (OWN, POOLING):
        return f"No grid is drawn: {model.name} does not average cells."
    if not is_on_grid(model):
        return f"No grid is drawn: the visual tokens of {model.name} do not stand for cells of one."
    return make_tiling(model.tiling).grid_note
