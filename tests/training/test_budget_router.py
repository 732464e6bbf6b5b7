"""Budget routers: what a model makes of questions at each budget, targets, calibration, a run."""

import json
import logging
from pathlib import Path

import pytest
import torch
from training_runs import weights

from m3.data.sample import Document, Sample, Turn
from m3.inference.conversation import Conversation, Generation
from m3.inference.loading import load
from m3.model.budgets import BudgetChoice, BudgetRouter, decode_choice
from m3.model.budgets.choice import TARGETS as CHOICE_TARGETS
from m3.model.budgets.router import VALUES
from m3.nesting import Budget, read_ladder
from m3.train import main
from m3.training.budget_router.calibration import (
    ChoiceCost,
    calibrate,
    chosen_means,
    chosen_places,
    random_mixture,
)
from m3.training.budget_router.fit import FitSettings, fit_router, predict
from m3.training.budget_router.outcomes import Outcomes, collect_outcomes, questions_of
from m3.training.budget_router.targets import TARGETS
from m3.training.recipe.router_recipe import TARGET_NAMES

BUDGETS = read_ladder(["1@24", "9@24", 36])
COST = ChoiceCost({BUDGETS[0]: 10, BUDGETS[1]: 20, BUDGETS[2]: 100}, router=1, look=5, view=24)
CHOICE = BudgetChoice(
    budgets=("1@24", "9@24", 36),
    view=24,
    target="score",
    costs=COST.shares(BUDGETS),
    width=16,
    heads=2,
)


def easy_and_hard(count: int = 240) -> Outcomes:
    """Questions whose word 5 needs 36 tokens, word 6 nine, and word 7 one."""
    torch.manual_seed(0)
    words = torch.randint(5, 8, (count,))
    needed = (7 - words)[:, None]
    is_right = torch.arange(3)[None] >= needed
    losses = torch.where(is_right, 0.01, 3.0) + 0.001 * torch.rand(count, 3)
    prompts = [[3, 4, int(word)] for word in words]
    return Outcomes(BUDGETS, torch.randn(count, 4, 8), prompts, losses, is_right)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_learns_which_budget_a_question_needs(target: str) -> None:
    torch.manual_seed(1)
    embeddings, outcomes = torch.nn.Embedding(10, 8), easy_and_hard()
    choice = decode_choice(CHOICE.to_dict() | {"target": target})
    assert choice is not None
    learned, held_out = outcomes.take(torch.arange(180)), outcomes.take(torch.arange(180, 240))
    router = fit_router(embeddings, 8, choice, learned, FitSettings(epochs=30, batch_size=16))
    values = predict(router, choice, embeddings, held_out)
    kept = dict(calibrate(values, held_out.is_right, CHOICE.costs, largest=2))[0.99]
    places = chosen_places(values, CHOICE.costs, kept)
    cheapest_right = held_out.is_right.int().argmax(1)
    assert (places == cheapest_right).float().mean() > 0.95
    means = chosen_means(values, held_out.is_right, BUDGETS, COST, 0.99, kept)
    expected = [COST.of(BUDGETS[place]) for place in places.tolist()]
    assert means.flops == pytest.approx(sum(expected) / len(expected))
    assert means.score > means.random_score + 0.1


def test_calibration_takes_the_highest_price_that_keeps_a_share() -> None:
    values = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.4, 0.0], [0.6, 0.0]])
    is_right = torch.tensor([[True, True], [True, True], [False, True], [False, True]])
    prices = dict(calibrate(values, is_right, (0.5, 1.0), largest=1))
    assert 0.4 < prices[1.0] < 0.8, "the second question is let go at 0.4, the third at 0.8"
    assert chosen_places(values, (0.5, 1.0), prices[1.0]).tolist() == [0, 0, 1, 1]
    assert prices[0.8] == prices[1.0]


def test_calibration_ends_where_the_share_is_first_lost() -> None:
    """The third question is lost at the cheap budget and the fourth is not: luck is no reason to go
    on.
    """
    values = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.4, 0.0], [0.6, 0.0]])
    is_right = torch.tensor([[True, True], [True, True], [False, True], [True, False]])
    assert 0.4 < dict(calibrate(values, is_right, (0.5, 1.0), largest=1))[1.0] < 0.8


def test_a_random_mixture_reaches_the_hull() -> None:
    points = [(10, 0.2), (20, 0.3), (30, 0.8)]
    assert random_mixture(20.0, points) == pytest.approx(0.5)
    assert random_mixture(10.0, points) == 0.2
    assert random_mixture(99.0, points) == 0.8


def test_a_look_is_paid_where_the_image_is_seen_again() -> None:
    cost = ChoiceCost({Budget(1, 24): 10, Budget(36): 100}, router=1, look=5, view=24)
    assert (cost.of(Budget(1, 24)), cost.of(Budget(36))) == (11, 106)


def test_the_share_decides_the_budget() -> None:
    """At a price of 5 the second budget's gain of 0.35 is not worth 0.1 of the largest's operations."""
    choice = decode_choice(CHOICE.to_dict() | {"prices": [[0.9, 5.0], [0.99, 0.1]]})
    assert choice is not None
    values = [0.4, 0.05, 0.0]
    assert choice.choose(values, 0.9) == BUDGETS[0]
    assert choice.choose(values, None) == choice.choose(values, 0.95) == BUDGETS[1]
    with pytest.raises(ValueError, match="auto:0.5 is outside .* 0.9 to 0.99"):
        choice.choose(values, 0.5)
    with pytest.raises(ValueError, match="was not calibrated"):
        CHOICE.choose(values, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": []}, "budgets is empty"),
        ({"heads": 3}, "budget_choice: heads 3 must divide its width 16"),
        ({"wide": 3}, "budget_choice: unknown key 'wide'. Did you mean 'width'"),
        ({"costs": [1.0]}, "budget_choice: costs has 1 entries for 3 budgets"),
        ({"layers": 0}, "budget_choice: layers must be at least 1, got 0"),
        ({"view": -3}, "budget_choice: view is a resolution in pixels"),
        ({"width": "x"}, "budget_choice: width: expected a whole number, got 'x'"),
        (
            {"prices": [1]},
            r"budget_choice: prices\.0: expected a list of 2: a number, a number, got 1",
        ),
        ({"target": "scores"}, "budget_choice: target 'scores'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_choice(CHOICE.to_dict() | changes)
    with pytest.raises(
        ValueError, match="budget_choice: missing keys: budgets, view, target, costs"
    ):
        decode_choice({})


def test_targets_are_named_alike_everywhere() -> None:
    assert tuple(TARGETS) == CHOICE_TARGETS == TARGET_NAMES
    assert set(VALUES) == set(TARGETS)


def test_padding_before_the_words_changes_nothing() -> None:
    router = BudgetRouter(CHOICE, 8).eval()
    router.init_weights(0.02)
    view, words = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    padded = torch.cat([torch.randn(1, 2, 8), words], dim=1)
    is_word = torch.tensor([[False, False, True, True, True]])
    alone = router(view, words, is_word[:, 2:])
    torch.testing.assert_close(router(view, padded, is_word), alone)


def test_questions_are_about_one_image() -> None:
    ask, answer = Turn("user", "<image>\nwhat?"), Turn("assistant", "red")
    then, blue = Turn("user", "and <image> there?"), Turn("assistant", "blue")
    more = Sample("a", (b"1",), (ask, answer, Turn("user", "where?"), blue))
    assert [question.turns for question in questions_of(more, each=False)] == [(ask, answer)]
    asked_alone = Turn("user", "<image>\nwhere?")
    assert [question.turns for question in questions_of(more, each=True)] == [
        (ask, answer),
        (asked_alone, blue),
    ]
    system = Turn("system", "be short")
    with_system = Sample("b", (b"1",), (system, *more.turns))
    assert [question.turns for question in questions_of(with_system, each=True)] == [
        (system, ask, answer),
        (system, asked_alone, blue),
    ]
    two = Sample("two", (b"1", b"2"), (ask, answer, then, blue))
    assert list(questions_of(two, each=True)) == [Sample("two", (b"1",), (ask, answer))]
    for unfit in (
        Document("d", (b"1",), ("a", "b")),
        Sample("t", (), (Turn("user", "what?"), answer)),
        Sample("late", (b"1",), (Turn("user", "what?"), answer, then, blue)),
    ):
        assert list(questions_of(unfit, each=True)) == []


def test_an_image_of_several_questions_passes_the_tower_once(recipe: Path) -> None:
    """Equal to one question at a time, up to the rounding of another batch."""
    assert (
        main([str(recipe), "matryoshka_vis_token_scale=[1@8, 4@16, 36]", "schedule.steps=1"]) == 0
    )
    model, processor = load(recipe.parent / "run" / "checkpoints" / "final", device="cpu")
    image = (recipe.parent / "0.png").read_bytes()
    other = (recipe.parent / "1.png").read_bytes()
    questions = [
        Sample(f"{n}", (picture,), (Turn("user", f"<image>\n{text}?"), Turn("assistant", "red")))
        for n, (picture, text) in enumerate(
            [(image, "what"), (other, "what"), (image, "where now")]
        )
    ]
    budgets = [processor.budget(budget) for budget in ("1@8", "4@16", 36)]
    seen: list[int] = []
    handle = model.model.connector.register_forward_pre_hook(
        lambda connector, inputs: seen.append(len(inputs[0]))
    )
    together = collect_outcomes(model, processor, questions, budgets, 3, 3)
    handle.remove()
    assert seen == [2, 2, 2]
    for number, question in enumerate(questions):
        alone = collect_outcomes(model, processor, [question], budgets, 1, 1)
        torch.testing.assert_close(together.losses[number], alone.losses[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.view[number], alone.view[0], rtol=1e-5, atol=1e-5)
        assert together.prompts[number] == alone.prompts[0]


def test_a_run_leaves_the_model_with_a_router(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="m3")
    ladder, recipe_folder = "matryoshka_vis_token_scale=[1@8, 4@16, 36]", recipe.parent
    assert main([str(recipe), ladder, "schedule.steps=3"]) == 0
    router_recipe = recipe_folder / "router.yaml"
    router_recipe.write_text(
        f"run: {recipe_folder}/router\nmodel: {recipe_folder}/run/checkpoints/final\n"
        "budget_router: {width: 16, heads: 2, epochs: 2, targets: [score, loss_gap]}\n"
        f"data: {{sources: [{{path: {recipe_folder}/data.json, image_folder: {recipe_folder}}}]}}\n"
        "samples: 4\nheld_out: 2\nbatch_size: 3\nhardware: {threads: 1}\n"
    )
    assert main([str(router_recipe)]) == 0
    before, after = weights(recipe_folder / "run"), weights(recipe_folder / "router")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"budget_router"}
    lines = (recipe_folder / "router" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["target"] for line in lines} == {"score", "loss_gap"}
    assert "questions held out (few: give or take 71)" in caplog.text
    model, processor = load(recipe_folder / "router" / "checkpoints" / "final", device="cpu")
    chosen_among = model.config.budget_choice.budgets
    assert chosen_among[-1] == 36 and set(chosen_among) <= {"1@8", "4@16", 36}
    view = model.get_image_features(torch.rand(2, 3, 8, 8)).pooler_output
    values = model.model.predict_values(view, [[4, 5], [6]])
    assert values.shape == (2, len(chosen_among))
    conversation = Conversation(model, processor, Generation(max_new_tokens=4))
    conversation.show_image(recipe_folder / "0.png")
    chosen = conversation.outline("How many?", "auto:0.9").budgets
    by_hand = conversation.ask("How many?", chosen[0], keep=False)
    assert conversation.ask("How many?", "auto:0.9", keep=False) == by_hand
    with pytest.raises(ValueError, match="auto:0.1 is outside what this router was calibrated"):
        conversation.ask("How many?", "auto:0.1")
    with pytest.raises(ValueError, match=r"no router to choose budgets: .*docs/auto\.md"):
        load(recipe_folder / "run" / "checkpoints" / "final", device="cpu")[0].model.predict_values(
            view, [[4], [5]]
        )


def test_a_model_that_is_trained_further_loses_its_router(
    recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its prices are those of the old weights."""
    ladder, folder = "matryoshka_vis_token_scale=[1@8, 4@16, 36]", recipe.parent
    assert main([str(recipe), ladder, "schedule.steps=1"]) == 0
    (folder / "router.yaml").write_text(
        f"run: {folder}/router\nmodel: {folder}/run/checkpoints/final\n"
        "budget_router: {width: 16, heads: 2, epochs: 1, targets: [score]}\n"
        f"data: {{sources: [{{path: {folder}/data.json, image_folder: {folder}}}]}}\n"
        "samples: 4\nheld_out: 2\nbatch_size: 3\nhardware: {threads: 1}\n"
    )
    assert main([str(folder / "router.yaml")]) == 0
    routed = folder / "router" / "checkpoints" / "final"
    (folder / "more.yaml").write_text(
        f"run: {folder}/more\nmodel: {routed}\nmatryoshka_vis_token_scale: [1@8, 4@16, 36]\n"
        "parts: {vision_tower: frozen, connector: 1e-4, decoder: 1e-4}\n"
        f"data: {{pack_length: 256, sources: [{{path: {folder}/data.json, image_folder: {folder}}}]}}\n"
        "schedule: {batch_size: 2, steps: 1}\nhardware: {threads: 1}\n"
    )
    assert main([str(folder / "more.yaml")]) == 0
    assert f"the budget router of {routed} is left out" in caplog.text
    assert json.loads((routed / "config.json").read_text())["budget_choice"] is not None
    final = folder / "more" / "checkpoints" / "final"
    assert json.loads((final / "config.json").read_text()).get("budget_choice") is None
    assert not any("budget_router" in name for name in weights(folder / "more"))
