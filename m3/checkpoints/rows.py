"""New rows of the embedding and of the output layer: the mean of the rows that are there.

A new token then is neither near nor far from any other, and its logit, the mean of all logits, is never the largest.
"""

from functools import partial

import torch
from torch import Tensor

from m3.checkpoints.base import Edits
from m3.model import M3Config

EMBEDDING, OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"


def room_for_placeholder(config: M3Config) -> tuple[int, Edits]:
    """The vocabulary with a row for the image token, and the edits that make it; none when it has one."""
    return grown(max(config.text_config.vocab_size, config.image_token_id + 1), config.text_config.vocab_size)


def grown(vocabulary: int, before: int) -> tuple[int, Edits]:
    """`vocabulary` rows instead of `before`."""
    if vocabulary == before:
        return vocabulary, {}
    edit = partial(append_mean_rows, rows=vocabulary)
    return vocabulary, {EMBEDDING: edit, OUTPUT: edit}


def append_mean_rows(weight: Tensor, rows: int) -> Tensor:
    """`weight` with its mean row repeated up to `rows` rows."""
    mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])
