"""Rows that join and leave a running batch get the numbers they would have alone."""

import pytest
import torch
from tiny_models import DECODERS, make_config, make_model, prompt
from torch import Tensor

from m3.model import M3ForConditionalGeneration
from m3.serving.engine.batch import Batch, merges

STEPS = 6
TOLERANCE = 1e-4
"""Of logits of size 1 to 10 in float32; measured: 1e-5."""


def image(seed: int) -> Tensor:
    return torch.randn(1, 144, 32, generator=torch.Generator().manual_seed(seed))


ROWS = [(1, 7, 8, 9), (36, 7), (9, *range(5, 25)), (144, 11, 12), (4, 6)]
"""Scale, then text."""


def inputs(rows: list[int]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Prompts and images of these rows."""
    images = {
        "image_features": torch.cat([image(row) for row in rows]),
        "image_scales": torch.tensor([ROWS[row][0] for row in rows]),
    }
    return [prompt(ROWS[row][0], *ROWS[row][1:]) for row in rows], images


def word(row: int, step: int) -> int:
    """The token that row goes on with, whatever its logits say: a chosen one could be the image
    token.
    """
    return 20 + (7 * step + row) % 50


@torch.no_grad()
def alone(model: M3ForConditionalGeneration, row: int) -> list[Tensor]:
    """Logits of the next token, `STEPS` times, without a cache."""
    (ids,), images = inputs([row])
    logits = []
    for step in range(STEPS):
        logits.append(model(input_ids=torch.tensor([ids]), **images, use_cache=False).logits[0, -1])
        ids = [*ids, word(row, step)]
    return logits


@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_get_the_numbers_they_would_have_alone(decoder: str) -> None:
    """Two begin, one joins while they are under way, the first leaves, two more join."""
    model = make_model(decoder=decoder)
    assert merges(model)
    expected = {row: alone(model, row) for row in range(len(ROWS))}
    batch, seen = Batch(model, 0), dict.fromkeys(range(len(ROWS)), 0)
    rows: list[int] = []
    tokens: list[int] = []
    joining = {0: [0, 1], 2: [2], 3: [3, 4]}
    compared = 0
    for turn in range(12):
        logits = list(batch.step(torch.tensor(tokens))) if rows else []
        if turn in joining:
            rows = [*rows, *joining[turn]]
            read = batch.read(*inputs(joining[turn]))
            batch.join(read)
            logits += list(read.logits)
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, expected[row][seen[row]], atol=TOLERANCE, rtol=0)
            seen[row] += 1
            compared += 1
        kept = [place for place, row in enumerate(rows) if seen[row] < STEPS]
        rows = [rows[place] for place in kept]
        tokens = [word(row, seen[row] - 1) for row in rows]
        batch.keep(kept)
        assert len(batch) == len(rows)
    assert compared == len(ROWS) * STEPS


def test_columns_that_are_padding_everywhere_are_cut_off() -> None:
    model = make_model()
    batch = Batch(model, 0)
    batch.join(batch.read(*inputs([3, 0])))
    assert batch.columns == 144 + 4
    batch.keep([1])
    assert batch.columns == 1 + 5
    batch.keep([])
    assert batch.columns == 0


def test_a_decoder_that_forgets_is_not_merged() -> None:
    """Sliding windows drop keys by their number, which left padding would change."""
    config = make_config(decoder="qwen3")
    config.text_config.sliding_window = 8
    config.text_config.layer_types = ["sliding_attention"] * config.text_config.num_hidden_layers
    assert not merges(M3ForConditionalGeneration(config))
