"""New rows of the embedding and of the output layer: drawn as rows like those that are there.

A new row is drawn from the normal distribution that has the mean and the covariance of the table's
rows (Hewitt, https://nlp.stanford.edu/~johnhew/vocab-expansion.html): nothing about it is unusual,
and no two are alike. Rows that were all the mean itself would give all new tokens one logit for
ever, unless their table is trained.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from m3.checkpoints.base import Edits
from m3.model import M3Config

NEW_TOKENS = "new_token_ids"
"""Key of `M3Config.new_token_ids` in the configurations of other formats, which pass over it and
keep it.
"""
EMBEDDING, OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"
_CHUNK = 8192
"""Rows of the table that are read as float32 at a time."""


def room_for_placeholder(config: M3Config) -> tuple[int, Edits]:
    """The vocabulary with a row for the image token, and the edits that make it; none when it
    has one.
    """
    before = config.text_config.vocab_size
    row_count = max(before, config.image_token_id + 1)
    return row_count, drawn_rows(range(before, row_count), before, row_count)


def drawn_rows(ids: Sequence[int], used: int, rows: int, seed: int = 0) -> Edits:
    """`rows` rows in all, those of `ids` drawn like the first `used`; no edits when there are no
    `ids`.
    """
    if not ids:
        return {}
    edit = partial(_with_drawn_rows, ids=list(ids), used=used, rows=rows, seed=seed)
    return {EMBEDDING: edit, OUTPUT: edit}


def _with_drawn_rows(weight: Tensor, ids: list[int], used: int, rows: int, seed: int) -> Tensor:
    """The mean plus `sum(z * (row - mean)) / sqrt(n - 1)` with normal `z`, which has the covariance
    of the rows.

    Both tables draw the same `z`: a token is the same mixture of tokens where it is read and where
    it is said.
    """
    new_places, table = sorted({*ids, *range(len(weight), rows)}), weight[:used]
    used = len(table)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(new_places), used, generator=generator, dtype=torch.float64)
    shares = (
        (1 / used + (z - z.mean(1, keepdim=True)) / math.sqrt(max(used - 1, 1)))
        .float()
        .to(weight.device)
    )
    drawn = torch.zeros(len(new_places), weight.shape[1], device=weight.device)
    for share, chunk in zip(shares.split(_CHUNK, dim=1), table.split(_CHUNK), strict=True):
        drawn += share @ chunk.float()
    grown = torch.cat([weight, weight.new_zeros(rows - len(weight), weight.shape[1])])
    grown[new_places] = drawn.to(weight.dtype)
    return grown
