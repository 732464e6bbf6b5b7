"""Grid of visual tokens on an example's picture, for the sample browser of report.html.

In: a model's row and an example of a run. Out: frames, cells and tiles at each scale as JSON for
report.js, and in words what is drawn or why nothing is.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from m3.evaluation.results.run_folder import Example, ModelRow
from m3.evaluation.token_reduction.methods import OWN
from m3.nesting import GridPool, ImageReader, get_nesting, make_tiling
from m3.processing.token_grid import views

POOLING = "pooling"


def is_on_grid(model: ModelRow) -> bool:
    """Tell whether each token of the model stands for one cell of a grid."""
    has_cells = isinstance(get_nesting(model.nesting), GridPool)
    return model.method == POOLING or (model.method == OWN and has_cells)


def reader_of(model: ModelRow, resolution: int | None = None) -> ImageReader:
    """The arithmetic of a model on the grid of a tile of a picture seen at a resolution."""
    tiling, full_side = make_tiling(model.tiling), model.encoder_side
    side = tiling.tile_side(resolution, full_side)
    grid = [count * side // full_side for count in model.grid]
    return ImageReader(
        get_nesting("grid_pool"), tiling, (grid[0], grid[1]) if len(grid) == 2 else model.grid[0]
    )


def drawn(
    model: ModelRow, example: Example, scales: Sequence[int | str]
) -> dict[int | str, dict[str, Any]]:
    """Budget -> tokens of the picture and its views at its resolution, for the budgets that the
    model reaches.

    None for tokens without a place.
    """
    if not is_on_grid(model):
        return {}
    image_size = (example.size[0], example.size[1])
    grids: dict[int | str, dict[str, Any]] = {}
    for scale in scales:
        budget = model.budget(scale)
        reader = reader_of(model, budget.resolution)
        if budget.tokens in reader.nesting.reachable(reader.grid):
            tiles = reader.tiling.tiles(image_size, budget.resolution)
            shown = views(reader, image_size, budget.tokens, budget.resolution)
            grids[scale] = {
                "tokens": reader.count(budget.tokens, tiles),
                "views": [asdict(view) for view in shown],
            }
    return grids


def grid_note(model: ModelRow) -> str:
    """A note for readers of the picture."""
    if model.method not in (OWN, POOLING):
        return f"No grid is drawn: {model.name} does not average cells."
    if not is_on_grid(model):
        return f"No grid is drawn: the visual tokens of {model.name} do not stand for cells of one."
    return make_tiling(model.tiling).grid_note
