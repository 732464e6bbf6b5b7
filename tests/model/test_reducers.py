"""Token reducers, row by row: they give each scale its tokens, train, save and load, and cost."""

from pathlib import Path

import pytest
import torch
from tiny_models import VOCAB, batch, make_config, make_model, prompt

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.backbone import build_reducer
from m3.model.cost import CostModel
from m3.model.reducers import REDUCERS
from m3.nesting import NESTINGS, pool_grid

SCALES = (1, 4, 9, 36, 144)
HAS_PARAMETERS = ("attention_pool",)


def configured(kind: str, **options: int) -> M3Config:
    return make_config(nesting={"kind": kind, "trained_scales": list(SCALES), **options})


def test_every_reducer_has_its_arithmetic() -> None:
    assert set(REDUCERS) == set(NESTINGS)


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("grid", [(12, 12), (4, 16), 36])
def test_every_scale_has_exactly_its_tokens(kind: str, grid: int | tuple[int, int]) -> None:
    nesting = NESTINGS[kind]
    number = grid[0] * grid[1] if isinstance(grid, tuple) else grid
    options = REDUCERS[kind].Options()
    reducer = REDUCERS[kind](options, nesting, grid, 8)
    tokens = torch.randn(2, number, 8)
    for scale in nesting.reachable(grid):
        reduced = reducer.reduce(tokens, scale, grid)
        assert reduced.shape == (2, scale, 8)
        torch.testing.assert_close(reduced[:1], reducer.reduce(tokens[:1], scale, grid))
    torch.testing.assert_close(reducer.reduce(tokens, number, grid), tokens)


@pytest.mark.parametrize("kind", REDUCERS)
def test_reducers_are_differentiable(kind: str) -> None:
    reducer = REDUCERS[kind](REDUCERS[kind].Options(), NESTINGS[kind], 16, 4).double()
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.normal_()
    tokens = torch.randn(2, 16, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: reducer.reduce(given, 4, 16), tokens)


@pytest.mark.parametrize("scale", SCALES)
def test_new_attention_pooling_is_grid_pooling(scale: int) -> None:
    reducer = build_reducer(configured("attention_pool"))
    reducer.init_weights(0.02)
    tokens = torch.randn(3, 144, 32)
    pooled = pool_grid(tokens, scale, (12, 12))
    torch.testing.assert_close(
        reducer.reduce(tokens, scale, (12, 12)), pooled, rtol=1e-5, atol=1e-6
    )


def test_attention_pooling_looks_at_what_its_queries_ask_for() -> None:
    reducer = build_reducer(configured("attention_pool", heads=1, key_width=32))
    with torch.no_grad():
        reducer.key.weight.copy_(torch.eye(32))
        reducer.queries.zero_()
        reducer.queries[reducer.scales.index(1), 0, 5] = 1000.0
        tokens = torch.randn(1, 144, 32)
        tokens[0, 77, 5] = 10.0
        (chosen,) = reducer.reduce(tokens, 1, (12, 12))[0]
    assert torch.equal(chosen, tokens[0, 77])


@pytest.mark.parametrize("kind", REDUCERS)
def test_parameters_have_gradients_at_every_scale_and_without_images(kind: str) -> None:
    model = make_model(nesting={"kind": kind, "trained_scales": list(SCALES)}).train()
    parameters = dict(model.model.reducer.named_parameters())
    assert bool(parameters) == (kind in HAS_PARAMETERS)
    for scales in ((1, 36), (144,), ()):
        model.zero_grad()
        rows = [prompt(scale, 5, 6) for scale in scales] or [[5, 6, 7]]
        inputs = batch(rows)
        if scales:
            inputs |= {
                "pixel_values": torch.rand(len(scales), 3, 48, 48),
                "image_scales": torch.tensor(scales),
            }
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None, name
        if scales == (1, 36):
            assert all(parameter.grad.abs().sum() > 0 for parameter in parameters.values())


@pytest.mark.parametrize("kind", REDUCERS)
def test_a_model_is_saved_and_loaded_with_its_reducer(kind: str, tmp_path: Path) -> None:
    model = make_model(nesting={"kind": kind, "trained_scales": list(SCALES)})
    model.save_pretrained(tmp_path)
    loaded, report = M3ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.nesting == model.config.nesting
    inputs = batch([prompt(9, 5, 6)]) | {
        "pixel_values": torch.rand(1, 3, 48, 48),
        "image_scales": torch.tensor([9]),
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    assert model(**inputs).logits.shape[-1] == VOCAB


def test_options_are_strict() -> None:
    assert configured("attention_pool", heads=2).nesting.options.heads == 2
    assert configured("attention_pool", heads=2).to_dict()["nesting"]["heads"] == 2
    assert configured("grid_pool").to_dict()["nesting"] == {
        "kind": "grid_pool",
        "trained_scales": list(SCALES),
    }
    with pytest.raises(ValueError, match="grid_pool has no setting heads; it has none"):
        configured("grid_pool", heads=2)
    with pytest.raises(ValueError, match="has no setting head; it has heads, key_width"):
        configured("attention_pool", head=2)
    with pytest.raises(ValueError, match="nesting.heads 5 does not divide the width 32"):
        make_model(nesting={"kind": "attention_pool", "heads": 5})


def test_the_reducer_is_part_of_the_cost() -> None:
    plain, learned = (
        CostModel.from_config(configured(kind)) for kind in ("grid_pool", "attention_pool")
    )
    tokens, width, keys = 144, 32, 4 * 32
    for scale in (1, 36):
        more = learned.cost(scale, 10).connector_flops - plain.cost(scale, 10).connector_flops
        assert more == 2 * tokens * (width * keys + keys + width)
    assert learned.cost(144, 10).connector_flops == plain.cost(144, 10).connector_flops
