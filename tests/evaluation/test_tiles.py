"""The engine on images in tiles: real tokens are counted, batches equal single questions,
bounded memory changes nothing.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine, Picture, Question, Reply
from m3.evaluation.cost.latency import measure
from m3.evaluation.results.store import Answer, Cell
from m3.evaluation.sweep.prompt_cost import costs_of, prompts_of
from m3.evaluation.token_reduction.methods import OWN
from m3.model.cost import CostModel
from m3.nesting import TILINGS
from tests.evaluation.conftest import make_image, save_model

PINPOINTS = [[24, 48], [48, 24], [48, 48]]
SETTINGS = {
    "tiles": {"kind": "tiles", "tile_size": 24, "grid_pinpoints": PINPOINTS},
    "anyres": {"kind": "anyres", "tile_size": 24, "grid_pinpoints": PINPOINTS},
    "internvl": {"kind": "internvl", "tile_size": 24, "max_tiles": 4},
}
SIZES = [(48, 48), (20, 44), (40, 17)]
SCALES = (1, 4, 36)


@pytest.fixture(scope="module", params=SETTINGS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    tiling = SETTINGS[request.param]
    return Engine.load(str(save_model(folder, scales=list(SCALES), tiling=tiling)))


def test_every_tiling_is_tested() -> None:
    assert set(SETTINGS) == set(TILINGS) - {"single"}


def ask(engine: Engine, index: int, scale: int | str, continuation: str | None = None) -> Question:
    pictures = [
        Picture.of(make_image(n).resize(SIZES[n][::-1], Image.Resampling.NEAREST))
        for n in range(index + 1)
    ]
    messages = [{"role": "user", "content": "<image>\n" * len(pictures) + "Which?"}]
    return engine.question(messages, pictures, scale, Decoding(max_new_tokens=3), continuation)


def answers(engine: Engine, questions: list[Question], batch_size: int) -> list[Reply]:
    found = {
        index: reply for batch in engine.answer(questions, batch_size) for index, reply in batch
    }
    return [found[index] for index in range(len(questions))]


@pytest.mark.parametrize("continuation", [None, "red"])
def test_batches_equal_single_questions_and_count_real_tokens(
    engine: Engine, continuation: str | None
) -> None:
    questions = [ask(engine, index, scale, continuation) for index in range(3) for scale in SCALES]
    together = answers(engine, questions, batch_size=4)
    for question, reply in zip(questions, together, strict=True):
        sizes = [(picture.image.height, picture.image.width) for picture in question.pictures]
        counts = engine.processor.count_tokens(sizes, question.scale)
        assert reply.visual_tokens == sum(counts) > question.scale * len(sizes)
        (alone,) = answers(engine, [question], 1)
        assert (alone.text, alone.visual_tokens, alone.text_tokens) == (
            reply.text,
            reply.visual_tokens,
            reply.text_tokens,
        )
        if continuation is not None:
            assert alone.log_likelihood[0] == pytest.approx(reply.log_likelihood[0], abs=1e-4)


def test_a_cache_of_one_image_gives_the_same_answers(engine: Engine) -> None:
    questions = [ask(engine, index, 4) for index in range(3)]
    expected = [reply.text for reply in answers(engine, questions, 2)]
    seen = engine.pictures.images_seen
    small = Engine(engine.model, engine.processor, engine.weights, cache_bytes=1)
    for _ in range(2):
        assert [reply.text for reply in answers(small, questions, 1)] == expected
    assert seen == 3 < small.pictures.images_seen


def test_the_cost_of_a_sweep_is_the_mean_over_the_prompts_it_asked(engine: Engine) -> None:
    """A picture in one tile and the whole, one in two, and a text alone: not three times the one
    of most tiles.
    """
    sizes = [((20, 44),), ((20, 44), (48, 48)), ()]
    cells = [Cell("w", "t", "d", str(n), "p", 4, "grid_pool") for n in range(3)]
    answers = [
        Answer(cell, "t", n, "", None, 0, 10 + n, 1, 0.1, (), sizes=sizes[n])
        for n, cell in enumerate(cells)
    ]
    tasks = {"mixed": prompts_of([*answers, answers[0]]), "nothing": prompts_of([])}
    row, of_task = costs_of(engine, "tiled", OWN, 4, tasks)
    assert replace(row, task="mixed") == of_task
    formulas, expected = CostModel(engine.model), []
    for n in (0, 1, 2, 0):
        visual = sum(engine.processor.count_tokens(list(sizes[n]), 4))
        tiles = sum(tiles.number for tiles in engine.processor.outlines(sizes[n]))
        expected.append(formulas.prompt_cost(4, visual, 10 + n, {None: tiles}))
    assert (row.prompts, row.model) == (4, "tiled")
    assert row.vision_flops == round(sum(cost.vision_flops for cost in expected) / 4)
    assert row.prefill_flops == round(sum(cost.prefill_flops for cost in expected) / 4)
    assert row.visual_tokens == round(sum(cost.visual_tokens for cost in expected) / 4)
    assert row.most_visual_tokens == max(cost.visual_tokens for cost in expected)
    assert (
        row.most_first_token_flops
        == max(cost.first_token_flops for cost in expected)
        > row.first_token_flops
    )
    # what one image of most tiles would take
    assert row.first_token_flops < formulas.cost(4, 11).first_token_flops
    (unasked,) = costs_of(engine, "tiled", OWN, 4, {})
    assert unasked.visual_tokens == formulas.cost(4, 32).visual_tokens


def test_each_task_has_the_cost_of_its_own_prompts(engine: Engine) -> None:
    """A task of texts and one of two pictures each: neither costs what the mean of both does."""
    cells = [Cell("w", "t", "d", str(n), "p", 4, "grid_pool") for n in range(4)]
    answers = [
        Answer(cell, "t", n, "", None, 0, 10, 1, 0.1, (), sizes=()) for n, cell in enumerate(cells)
    ]
    pictures = [replace(answer, sizes=((20, 44), (48, 48))) for answer in answers[:2]]
    tasks = {"words": prompts_of(answers), "pairs": prompts_of(pictures)}
    whole, words, pairs = costs_of(engine, "tiled", OWN, 4, tasks)
    assert [row.task for row in (whole, words, pairs)] == ["", "words", "pairs"]
    assert [row.prompts for row in (whole, words, pairs)] == [6, 4, 2]
    assert (words.visual_tokens, words.vision_flops) == (0, 0)
    assert pairs.visual_tokens == sum(engine.processor.count_tokens([(20, 44), (48, 48)], 4))
    assert whole.visual_tokens == round(2 * pairs.visual_tokens / 6)
    assert words.first_token_flops < whole.first_token_flops < pairs.first_token_flops


def test_cost_and_latency_are_those_of_all_tiles(engine: Engine, tmp_path: Path) -> None:
    """The image with most tiles is 2 x 2 and the whole: five times the tower, and 36 + 12 x 13
    tokens with an end of each row. Of InternVL it is a column of four and the whole.
    """
    kind = engine.model.config.tiling.kind
    most_tiles, most_tokens = {
        "tiles": (5, 5 * 36),
        "anyres": (5, 36 + 12 * 13),
        "internvl": (5, 5 * 36),
    }[kind]
    formulas = CostModel(engine.model)
    plain = CostModel(Engine.load(str(save_model(tmp_path / "plain", scales=list(SCALES)))).model)
    cost, one = formulas.cost(36, 10), plain.cost(36, 10)
    assert (cost.visual_tokens, one.visual_tokens) == (most_tokens, 36)
    assert (
        cost.vision_flops == most_tiles * one.vision_flops
        and cost.connector_flops == most_tiles * one.connector_flops
    )
    assert (
        formulas.cost(36, 10, size=(20, 44)).visual_tokens
        == engine.processor.count_tokens([(20, 44)], 36)[0]
    )
    measured = measure(engine.model, [1], text_tokens=4, repeats=1, warm_up=0, tokens=1)
    assert len(measured) == 1


@pytest.mark.parametrize("scale", ["4@24", "9@12"])
def test_a_budget_with_a_resolution_sees_its_own_tiles(engine: Engine, scale: str) -> None:
    """Up to the side of a tile, InternVL's too, the picture is seen as a whole alone."""
    questions = [ask(engine, index, budget) for index in range(3) for budget in (scale, 36)]
    together = answers(engine, questions, batch_size=4)
    for question, reply in zip(questions, together, strict=True):
        sizes = [(picture.image.height, picture.image.width) for picture in question.pictures]
        assert reply.visual_tokens == sum(engine.processor.count_tokens(sizes, question.scale))
        assert answers(engine, [question], 1)[0].text == reply.text
    cells = [Cell("w", "t", "d", "0", "p", scale, "grid_pool")]
    asked = [Answer(cell, "t", 0, "", None, 0, 10, 1, 0.1, (), sizes=((20, 44),)) for cell in cells]
    row, _ = costs_of(engine, "tiled", OWN, scale, {"one": prompts_of(asked)})
    formulas = CostModel(engine.model)
    assert (row.scale, row.visual_tokens) == (
        scale,
        engine.processor.count_tokens([(20, 44)], scale)[0],
    )
    assert row.vision_flops == formulas.vision_flops(int(scale.partition("@")[2]))
    assert row.first_token_flops == formulas.cost(scale, 10, size=(20, 44)).first_token_flops
