"""Nested token sets: one image, any number of visual tokens.

Imports torch and nothing of ours; lift it into any project.
"""

from m3.nesting.base import SCALE_OPTION, Grid, Nesting, UnreachableScaleError
from m3.nesting.budget import BUDGET, Budget, read_budget, read_ladder, resolutions
from m3.nesting.grid_pool import GridPool, as_rectangle, pool_grid
from m3.nesting.image_reader import ImageReader
from m3.nesting.layouts import Size, Tiles
from m3.nesting.query_prefix import QueryPrefix, take_prefix
from m3.nesting.tiling import TILINGS, Frame, SingleTile, Tiling, make_tiling

NESTINGS: dict[str, Nesting] = {
    "grid_pool": GridPool(),
    "query_prefix": QueryPrefix(),
    "attention_pool": GridPool(),
}
"""Arithmetic of the scales of each kind of token reducer."""


def get_nesting(reducer_kind: str) -> Nesting:
    """Nesting of a kind of token reducer; a `ValueError` lists the known ones."""
    if reducer_kind not in NESTINGS:
        raise ValueError(f"unknown nesting {reducer_kind!r}; known: {', '.join(NESTINGS)}")
    return NESTINGS[reducer_kind]


__all__ = [
    "BUDGET",
    "NESTINGS",
    "SCALE_OPTION",
    "TILINGS",
    "Budget",
    "Frame",
    "Grid",
    "GridPool",
    "ImageReader",
    "Nesting",
    "QueryPrefix",
    "SingleTile",
    "Size",
    "Tiles",
    "Tiling",
    "UnreachableScaleError",
    "as_rectangle",
    "get_nesting",
    "make_tiling",
    "pool_grid",
    "read_budget",
    "read_ladder",
    "resolutions",
    "take_prefix",
]
