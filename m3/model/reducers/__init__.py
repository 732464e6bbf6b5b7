"""Token reducers: modules that turn the tokens of a tile into those of any scale, coarse to fine.

A reducer is a row of `REDUCERS`; the row of the same name in `m3.nesting.NESTINGS` says which
scales it reaches and how the tokens stand. docs/add_a_reducer.md adds one.
"""

from collections.abc import Mapping

from m3.model.reducers.attention_pool import AttentionPool
from m3.model.reducers.base import NoOptions, TokenReducer, decode_options
from m3.model.reducers.grid_pool import GridPoolReducer
from m3.model.reducers.query_prefix import QueryPrefixReducer

REDUCERS: Mapping[str, type[TokenReducer]] = {
    "grid_pool": GridPoolReducer,
    "query_prefix": QueryPrefixReducer,
    "attention_pool": AttentionPool,
}

__all__ = ["REDUCERS", "NoOptions", "TokenReducer", "decode_options"]
