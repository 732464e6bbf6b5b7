"""New rows of the embedding and of the output layer: the mean of the rows that are there.

A new token then is neither near nor far from any other, and its logit, the mean of all logits, is never the largest.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from m3.checkpoints.base import Edits
from m3.model import M3Config

EMBEDDING, OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"


def room_for_placeholder(config: M3Config) -> tuple[int, Edits]:
    """The vocabulary with a row for the image token, and the edits that make it; none when it has one."""
    before = config.text_config.vocab_size
    rows = max(before, config.image_token_id + 1)
    return rows, mean_rows(range(before, rows), before, rows)


def mean_rows(ids: Sequence[int], used: int, rows: int) -> Edits:
    """`rows` rows in all, those of `ids` at the mean of the first `used`; no edits when there are no `ids`."""
    if not ids:
        return {}
    edit = partial(_with_mean_rows, ids=list(ids), used=used, rows=rows)
    return {EMBEDDING: edit, OUTPUT: edit}


def _with_mean_rows(weight: Tensor, ids: list[int], used: int, rows: int) -> Tensor:
    mean = weight[:used].mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    grown = torch.cat([weight, mean.expand(rows - len(weight), -1)])
    grown[ids] = mean
    return grown
