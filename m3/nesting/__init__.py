"""Nested token sets: one image, any number of visual tokens.

Imports torch and nothing of ours; lift it into any project. What computes with tensors is imported
when it is first asked for: the settings of a recipe need arithmetic alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

from m3.nesting.base import SCALE_OPTION, Grid, Nesting, UnreachableScaleError
from m3.nesting.budget import BUDGET, Budget, read_budget, read_ladder, resolutions

if TYPE_CHECKING:
    from m3.nesting.grid_pool import GridPool, as_rectangle, pool_grid
    from m3.nesting.image_reader import ImageReader
    from m3.nesting.kinds import NESTINGS, get_nesting
    from m3.nesting.layouts import Size, Tiles
    from m3.nesting.query_prefix import QueryPrefix, take_prefix
    from m3.nesting.tiling import TILINGS, Frame, SingleTile, Tiling, make_tiling

_HOMES = {
    "GridPool": "grid_pool",
    "as_rectangle": "grid_pool",
    "pool_grid": "grid_pool",
    "ImageReader": "image_reader",
    "NESTINGS": "kinds",
    "get_nesting": "kinds",
    "Size": "layouts",
    "Tiles": "layouts",
    "QueryPrefix": "query_prefix",
    "take_prefix": "query_prefix",
    "TILINGS": "tiling",
    "Frame": "tiling",
    "SingleTile": "tiling",
    "Tiling": "tiling",
    "make_tiling": "tiling",
}
"""Name -> the file that it is imported from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]


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
