"""Choices among budgets in a sweep: auto, the rule, schedules over frames; and how they are judged."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m3.evaluation.analysis.choices import choice_rows, choices_by_task, task_outcomes
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine, Picture, Question
from m3.evaluation.cost.choice_latency import choice_latency, time_choosing
from m3.evaluation.cost.latency import measure
from m3.evaluation.harness.lmms_model import check_scale
from m3.evaluation.report import command as report
from m3.evaluation.results.run_folder import cell_name, read_cell_name, read_keys
from m3.evaluation.results.store import Store
from m3.evaluation.sweep import command as sweep
from m3.model import M3ForConditionalGeneration
from m3.model.budgets import BudgetChoice, BudgetRouter
from m3.model.budgets.mixture import mixture_shares
from m3.model.cost import CostModel
from m3.nesting import read_budget
from m3.processing import M3Processor
from tests.evaluation.conftest import make_image, save_model

LADDER: list[int | str] = ["1@8", "9@12", "4@16", 9, 36]
CHOICES = ["auto", "auto:0.8", "auto:rule", "36+1"]


@pytest.fixture(scope="module")
def routed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a router that has learned nothing, but differs from picture to picture."""
    plain = save_model(tmp_path_factory.mktemp("models") / "plain", scales=LADDER)
    model = M3ForConditionalGeneration.from_pretrained(plain)
    choice = BudgetChoice(
        budgets=("1@8", "9@12", "4@16", 36),
        view=8,
        target="loss_gap",
        costs=(0.1, 0.2, 0.3, 1.0),
        prices=((0.8, 0.5), (0.99, 0.05)),
        width=16,
        heads=2,
    )
    torch.manual_seed(4)
    router = BudgetRouter(choice, model.config.text_config.hidden_size)
    router.init_weights(1.0)
    torch.nn.init.normal_(router.head.weight, std=9.0)
    torch.nn.init.normal_(router.view.weight, std=9.0)
    torch.nn.init.zeros_(router.words.weight)
    model.config.budget_choice, model.model.budget_router = choice, router
    folder = plain.parent / "routed"
    model.save_pretrained(folder)
    M3Processor.from_pretrained(plain).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def routed(routed_folder: Path) -> Engine:
    return Engine.load(str(routed_folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, routed_folder: Path, task_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "run"
    options = ["--tasks", "tiny_one,tiny_two", "--scales", ",".join([*CHOICES, *map(str, LADDER)])]
    options += ["--include-path", str(task_folder), "--device", "cpu", "--out", str(folder)]
    models = [str(routed_folder), str(routed_folder.parent / "plain")]
    assert sweep.main([*models, *options, "--no-latency"]) == 0
    return folder


def ask(engine: Engine, indices: list[int], scale: int | str) -> Question:
    content = "<image>\n" * len(indices) + "Which?"
    pictures = [Picture.of(make_image(index)) for index in indices]
    messages = [{"role": "user", "content": content}]
    return engine.question(messages, pictures, scale, Decoding(max_new_tokens=4))


def answers(engine: Engine, questions: list[Question]) -> list[str]:
    replies = {index: reply for batch in engine.answer(questions, 4) for index, reply in batch}
    return [replies[index].text for index in range(len(questions))]


def test_one_batch_mixes_fixed_per_frame_and_automatic_budgets(routed: Engine) -> None:
    """And the answers are those of the same budgets given by hand."""
    asked = [
        ask(routed, indices, scale)
        for indices in ([0], [1, 2], [3, 4, 5])
        for scale in ("auto", "auto:rule", "36+1", 9, "4@16", "auto:0.8")
    ]
    settled = routed.settle(asked, 4)
    assert all(question.is_settled for question in settled)
    assert len({settled[n].scale for n in range(0, len(asked), 6)}) > 1, (
        "the router sees no picture"
    )
    assert [question.scale for question in settled[2::6]] == [36, "36,1", "36,1,1"]
    assert answers(routed, asked) == answers(routed, settled)


def test_the_rule_goes_by_the_size_of_each_picture(routed: Engine) -> None:
    settled = routed.settle([ask(routed, [0], "auto:rule")], 4)[0]
    size = max(make_image(0).size)
    sides = [side for side in (8, 12, 16) if side >= size]
    assert read_budget(settled.scale).resolution == (sides[0] if sides else None)


def test_a_sweep_has_rows_of_choices(run: Path, routed: Engine) -> None:
    with (run / "cells.csv").open() as file:
        cells = [row for row in csv.DictReader(file) if row["task"] == "tiny_one"]
    fixed = ["1@8", "4@16", "9@12", "9", "36"]
    scales = {
        model: [cell["scale"] for cell in cells if cell["model"] == model]
        for model in ("routed", "plain")
    }
    assert scales["routed"] == [*fixed, *CHOICES]
    assert scales["plain"] == [*fixed, "auto:rule", "36+1"], "it has no router"
    with Store(run / "store") as store:
        chosen = read_keys(run, "routed", "tiny_one", "auto")
        for doc_id, key in chosen.items():
            scale = store.answer(key).cell.scale
            assert read_keys(run, "routed", "tiny_one", scale)[doc_id] == key
        assert len(store) == len(set(store_keys(run))), "an answer was made twice"


def store_keys(run: Path) -> list[str]:
    lines = [line for file in (run / "store").glob("*.jsonl") for line in file.open()]
    records = [json.loads(line) for line in lines]
    return [record["key"] for record in records if record["kind"] == "answer"]


def test_costs_of_auto_have_the_router_and_its_looks(run: Path, routed: Engine) -> None:
    formulas = CostModel(routed.model)
    with (run / "cost.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "routed"]
    costs = {row["scale"]: row for row in rows if row["task"] == "tiny_one"}
    expected = []
    with Store(run / "store") as store:
        for key in read_keys(run, "routed", "tiny_one", "auto").values():
            answer = store.answer(key)
            budget = read_budget(answer.cell.scale)
            cost = formulas.cost(budget, answer.text_tokens).first_token_flops
            if budget.resolution != 8:
                cost += formulas.vision_flops(8) + formulas.connector_flops(8)
            router = routed.model.model.budget_router
            assert router is not None
            expected.append(cost + router.flops(4, answer.text_tokens))
    names = ("vision_flops", "connector_flops", "prefill_flops")
    total = sum(int(costs["auto"][name]) for name in names)
    assert total == pytest.approx(np.mean(expected), abs=2)


def test_latency_of_a_choice_is_that_of_its_budgets_and_of_choosing(routed: Engine) -> None:
    fixed = measure(routed.model, ["1@8", "4@16", 36], 5, (1, 2), repeats=2, warm_up=0, tokens=2)
    shares: dict[int | str, float] = {"4@16": 0.25, 36: 0.75}
    plain = choice_latency("auto:rule", shares, fixed, {})
    assert [(row.scale, row.batch_size) for row in plain] == [("auto:rule", 1), ("auto:rule", 2)]
    times = {(row.scale, row.batch_size): row.first_token_s for row in fixed}
    expected = 0.25 * times["4@16", 2] + 0.75 * times[36, 2]
    assert plain[1].first_token_s == pytest.approx(expected)
    choosing = time_choosing(routed.model, shares, 5, (1, 2))
    assert all(seconds.wall > 0 for seconds in choosing.values())
    chosen = choice_latency("auto", shares, fixed, choosing)
    assert chosen[1].first_token_s == pytest.approx(expected + choosing[2].wall)
    assert choice_latency("auto", {9: 1.0}, fixed, choosing) == [], "9 was not measured"


def test_the_report_judges_choices(run: Path) -> None:
    report.main([str(run), "--formats", "svg"])
    summary = Summary.read(run)
    assert summary.choices == summary.choices_of("routed") == tuple(CHOICES)
    assert summary.choices_of("plain") == ("auto:rule", "36+1")
    assert "failed" not in (run / "tables" / "scores.md").read_text()
    rows = {row.name: row for row in choice_rows(summary, "routed")}
    assert list(rows) == [*CHOICES, "by task", "cascade", "random", "oracle"]
    cost = summary.cost("routed", "auto", "tiny_one")
    other = summary.cost("routed", "auto", "tiny_two")
    assert cost is not None and other is not None
    assert rows["auto"].flops == np.mean([cost.first_token_flops, other.first_token_flops])
    mean = summary.mean("routed", "auto")
    assert mean is not None
    assert rows["auto"].score == pytest.approx(mean.value)
    assert rows["oracle"].score >= max(row.score for row in rows.values())
    table = (run / "tables" / "choices.md").read_text()
    assert all(name in table for name in rows)
    assert (run / "figures" / "choices.svg").exists()
    html = (run / "report.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert data["choices"] == CHOICES
    assert set(CHOICES) < set(data["scores"]["routed"]["tiny_one"])


def test_a_mixture_that_costs_as_much_scores_what_lies_between() -> None:
    assert mixture_shares(15.0, [10, 20, 30], [0.2, 0.3, 0.8]) == [0.75, 0.0, 0.25]
    assert mixture_shares(5.0, [10, 20], [0.2, 0.3]) == [1.0, 0.0]
    assert mixture_shares(40.0, [10, 20], [0.9, 0.3]) == [1.0, 0.0]


def test_no_document_decides_on_its_own_budget(run: Path) -> None:
    """What a choice of the second half is made by are the scores of the first, and the other way
    round.
    """
    outcomes = task_outcomes(Summary.read(run), "routed")
    assert outcomes is not None
    task = outcomes[0]
    scores = np.ones_like(task.scores)
    scores[task.is_second_half, 0] = 0.0  # the second half needs more than the cheapest budget
    changed = replace(task, scores=scores)
    tokens = choices_by_task([changed])[0].tokens
    cheapest = task.samples.tokens[0, 0]
    assert (tokens[task.is_second_half] == cheapest).all()
    assert (tokens[~task.is_second_half] > cheapest).all()


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("task@auto", ("task", "auto")),
        ("task@auto=0.95", ("task", "auto:0.95")),
        ("task@auto=rule", ("task", "auto:rule")),
        ("task@144x4+1", ("task", "144x4+1")),
        ("a@b@36@48", ("a@b", "36@48")),
    ],
)
def test_names_of_files_give_the_choice_back(name: str, cell: tuple[str, int | str]) -> None:
    assert read_cell_name(name) == cell
    assert cell_name(*cell) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "auto:0.1"], "model routed: auto:0.1 is outside what this router"),
        (["--scales", "auto", "--methods", "random"], "add nesting to --methods"),
        (["--scales", "automatic"], "--scales takes numbers .* auto:rule"),
        (["--scales", "49+1"], "model routed: .*49"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(
    routed_folder: Path, task_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = ["--tasks", "tiny_one", "--include-path", str(task_folder), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        sweep.main([str(routed_folder), *given, *options])


def test_a_model_without_a_router_refuses_auto(engine: Engine, routed: Engine) -> None:
    with pytest.raises(ValueError, match="no router to choose budgets"):
        check_scale(engine, "auto")
    check_scale(engine, "auto:rule")
    check_scale(routed, "auto")
