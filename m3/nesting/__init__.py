"""Nested token sets: one image, any number of visual tokens.

Imports torch and nothing of ours; lift it into any project.
"""

from m3.nesting.base import Grid, Nesting, UnreachableScaleError
from m3.nesting.grid_pool import GridPool, as_rectangle, pool_grid
from m3.nesting.layout import LAYOUTS, ImageReader, Tiles, TilingConfig
from m3.nesting.query_prefix import QueryPrefix, take_prefix

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
    "LAYOUTS",
    "NESTINGS",
    "Grid",
    "GridPool",
    "ImageReader",
    "Nesting",
    "QueryPrefix",
    "Tiles",
    "TilingConfig",
    "UnreachableScaleError",
    "as_rectangle",
    "get_nesting",
    "pool_grid",
    "take_prefix",
]
