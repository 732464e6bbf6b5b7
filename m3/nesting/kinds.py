"""The table of nestings: the arithmetic of the scales of each kind of token reducer.

A file of its own so that what needs the settings of budgets alone waits for no torch.
"""

from m3.nesting.base import Nesting
from m3.nesting.grid_pool import GridPool
from m3.nesting.query_prefix import QueryPrefix

NESTINGS: dict[str, Nesting] = {
    "grid_pool": GridPool(),
    "query_prefix": QueryPrefix(),
    "attention_pool": GridPool(),
}
"""Arithmetic of the scales of each kind of token reducer."""


def get_nesting(reducer_kind: str) -> Nesting:
    """Nesting of a kind of token reducer; a `ValueError` lists the known ones."""
    if reducer_kind not in list(NESTINGS):  # a list in a file is no key
        raise ValueError(f"unknown nesting kind {reducer_kind!r}; known: {', '.join(NESTINGS)}")
    return NESTINGS[reducer_kind]
