"""The controls: each chooses exactly as many tokens as asked, the decoder reads exactly those,
and answers are its own.
"""

import pytest
import torch

from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Picture
from m3.evaluation.token_reduction.fastv import decoder_layers, mean_visual_tokens, pruning
from m3.evaluation.token_reduction.method_cost import method_cost
from m3.evaluation.token_reduction.methods import (
    FASTV,
    METHODS,
    OWN,
    RESOLUTION,
    get_method,
    is_own,
)
from m3.evaluation.token_reduction.table import CHOICES, ChosenTokenReducer
from m3.model.cost import CostModel
from m3.model.reducers import NoOptions
from m3.nesting import Budget, Tiles, get_nesting
from tests.evaluation.conftest import make_image, save_model

GRID = (6, 6)
GREEDY = Decoding(max_new_tokens=4)


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(36, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1, 4, 9, 36])
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_gives_as_many_tokens_as_asked_and_always_the_same(name: str, scale: int):
    choice = CHOICES[name]
    chosen = choice.choose(tokens(), scale, GRID, "picture")
    assert chosen.shape == (scale, 8)
    torch.testing.assert_close(
        chosen, choice.choose(tokens(), scale, GRID, "picture"), rtol=0, atol=0
    )
    if name != "pooling":  # picked, each once, in reading order
        places = [int((tokens() == row).all(1).nonzero()) for row in chosen]
        assert places == sorted(set(places))
    if scale == 36:
        torch.testing.assert_close(chosen, tokens(), rtol=0, atol=0)


def test_chosen_tokens_take_the_place_of_the_models_reducer(engine: Engine):
    model, chosen = engine.model.model, tokens()[None, :9]
    reducer = ChosenTokenReducer(NoOptions(), get_nesting("grid_pool"), GRID, 8)
    own = model.reducer
    with model.reducing_by(reducer):
        assert model.reducer is reducer
        assert torch.equal(model.reducer.reduce(chosen, 4, GRID), chosen[:, :4])
    assert model.reducer is own


def test_random_tokens_differ_between_pictures_and_seeds():
    draw = CHOICES["random"].choose(tokens(), 4, GRID, "one")
    assert not torch.equal(draw, CHOICES["random"].choose(tokens(), 4, GRID, "two"))
    assert not torch.equal(draw, CHOICES["random_1"].choose(tokens(), 4, GRID, "one"))


def test_uniform_sampling_takes_the_middle_of_each_cell():
    numbered = torch.arange(36.0)[:, None]
    picked = CHOICES["uniform"].choose(numbered, 4, GRID, "")
    assert picked.flatten().tolist() == [7, 10, 25, 28]  # rows and columns 1 and 4 of six


def test_diverse_and_covering_tokens_find_the_clusters():
    """Thirty copies of one direction and six others: diversity and coverage take one copy,
    chance takes mostly copies.
    """
    directions = torch.eye(8)[:7]
    crowd = torch.cat([directions[:1].expand(30, 8), directions[1:]])
    for name in ("divprune", "coverage"):
        chosen = CHOICES[name].choose(crowd, 7, GRID, "")
        assert len({tuple(row.tolist()) for row in chosen}) == 7
    assert len({tuple(row.tolist()) for row in CHOICES["random"].choose(crowd, 7, GRID, "")}) < 7


def test_names_are_strict_and_learned_queries_have_no_grid():
    with pytest.raises(ValueError, match="no method 'fastvv'. Did you mean 'fastv'?"):
        get_method("fastvv")
    with pytest.raises(
        ValueError,
        match="uniform needs tokens that stand on a grid, but this model's are an "
        "ordered list of 36",
    ):
        CHOICES["uniform"].choose(tokens(), 4, 36, "")
    assert (
        is_own("pooling", "grid_pool")
        and not is_own("pooling", "query_prefix")
        and is_own(OWN, "query_prefix")
    )
    assert all(row.about and "http" in row.source for row in METHODS.values())
    assert METHODS.keys() == CHOICES.keys() | {OWN, RESOLUTION, FASTV}


def reply(engine: Engine, method: str, scale: int, index: int = 1, continuation: str | None = None):
    question = engine.question(
        [{"role": "user", "content": "<image>\nWhat?"}],
        [Picture.of(make_image(index))],
        scale,
        GREEDY,
        continuation,
    )
    ((_, answer),) = [
        one for batch in engine.answer([question.at(scale, method)], 1) for one in batch
    ]
    return answer


@pytest.mark.parametrize("name", [name for name in METHODS if name != "fastv"])
def test_every_method_answers_at_a_scale_and_equals_the_ladder_with_all_tokens(
    engine: Engine, name: str
):
    """With all 36 tokens every choice is the model itself; `resolution` then sees the image at
    its own size.
    """
    assert reply(engine, name, 4).visual_tokens == 4
    whole = reply(engine, name, 36, continuation="red").log_likelihood[0]
    assert whole == pytest.approx(
        reply(engine, OWN, 36, continuation="red").log_likelihood[0], abs=2e-5
    )


def test_methods_and_scales_of_one_batch_do_not_mix(engine: Engine):
    """Rows of all methods in one batch say what each says alone."""
    names = [name for name in METHODS if name != "fastv"]
    picture = Picture.of(make_image(2))
    ask = engine.question(
        [{"role": "user", "content": "<image>\nWhat?"}], [picture], 9, GREEDY, "green"
    )
    together = dict(
        one for batch in engine.answer([ask.at(9, name) for name in names], 16) for one in batch
    )
    for i, name in enumerate(names):
        alone = reply(engine, name, 9, index=2, continuation="green").log_likelihood[0]
        assert together[i].log_likelihood[0] == pytest.approx(alone, abs=2e-5), name
    # pooling is own
    assert (
        len({round(answer.log_likelihood[0], 4) for answer in together.values()}) >= len(names) - 1
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Four decoder layers, so that two are behind the cut."""
    return Engine.load(str(save_model(tmp_path_factory.mktemp("deep") / "m", seed=3, layers=4)))


def test_fastv_masks_what_cutting_the_sequence_would_drop(deep: Engine):
    """Against the paper's own way on one prompt: layers behind the cut run on the shortened
    sequence, positions kept.
    """
    model, scale = deep.model, 4
    question = deep.question(
        [{"role": "user", "content": "<image>\nWhat?"}], [Picture.of(make_image(1))], scale, GREEDY
    )
    question = question.at(scale, "fastv")
    inputs = deep._inputs([question], [deep._row(question)])
    ids, last = inputs["input_ids"], inputs["input_ids"].shape[1] - 1
    with (
        torch.no_grad(),
        pruning(model, ids == 1, torch.tensor([scale]), torch.tensor([last])) as state,
    ):
        masked = model(**inputs, use_cache=False).logits[0, -1]
    kept = torch.where(~state.dropped[0])[0]
    assert len(kept) == ids.shape[1] - 36 + scale

    decoder = model.model.language_model
    captured: dict[str, torch.Tensor] = {}

    def shorten(_, positional, named):
        named = dict(named)
        rotary = named["position_embeddings"]
        hidden = positional[0] if positional else named.pop("hidden_states")
        if "rotary" not in captured:
            hidden = hidden[:, kept]
            captured["rotary"] = tuple(part[:, kept] for part in rotary)
        named["position_embeddings"] = captured["rotary"]
        named["attention_mask"] = None  # sdpa: causal, one row without padding
        return (hidden,), named

    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("sdpa")
    hooks = [
        layer.register_forward_pre_hook(shorten, with_kwargs=True)
        for layer in decoder_layers(model)[2:]
    ]
    try:
        with torch.no_grad():
            cut = model(**inputs, use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
        decoder.set_attn_implementation(before)
    torch.testing.assert_close(masked, cut, rtol=1e-4, atol=1e-4)


def test_fastv_with_all_tokens_is_the_model_itself_and_leaves_no_trace(deep: Engine):
    own = reply(deep, OWN, 36, continuation="red").log_likelihood[0]
    assert reply(deep, "fastv", 36, continuation="red").log_likelihood[0] == pytest.approx(
        own, abs=2e-5
    )
    few = reply(deep, "fastv", 1, continuation="red")
    assert few.log_likelihood[0] != pytest.approx(own, abs=1e-4)
    assert few.visual_tokens == mean_visual_tokens(36, 1, 4) == round((2 * 36 + 2 * 1) / 4)
    assert reply(deep, "fastv", 4).text == reply(deep, "fastv", 4).text
    assert reply(deep, OWN, 36, continuation="red").log_likelihood[0] == own


def test_fastv_needs_layers_behind_the_cut(engine: Engine):
    with pytest.raises(
        ValueError,
        match="fastv leaves 2 layers whole and needs at least one behind them; this decoder has 2",
    ):
        reply(engine, "fastv", 4)


def test_cost_counts_what_a_method_computes(deep: Engine):
    own = {scale: CostModel(deep.model).cost(scale, 20) for scale in (4, 36)}
    assert method_cost(deep.model, "divprune", Budget(4), 20, [Tiles()]) == own[4]
    low = method_cost(deep.model, "resolution", Budget(4), 20, [Tiles()])
    assert low.prefill_flops == own[4].prefill_flops
    assert low.vision_flops < own[4].vision_flops / 8
    fast = method_cost(deep.model, "fastv", Budget(4), 20, [Tiles()])
    assert own[4].prefill_flops < fast.prefill_flops < own[36].prefill_flops
    assert fast.kv_cache_bytes == (own[4].kv_cache_bytes + own[36].kv_cache_bytes) // 2
