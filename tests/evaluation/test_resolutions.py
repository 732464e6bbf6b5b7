"""Budgets of tokens at a resolution in a sweep: answers, costs, tables, page and table of the run
know them by their label.
"""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

import m3
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine, Picture, Question
from m3.evaluation.cost.latency import levels, low_quantile, measure, spread
from m3.evaluation.harness.lmms_model import check_scale
from m3.evaluation.report import command as report
from m3.evaluation.results.run_folder import read_cell_name, read_keys
from m3.evaluation.results.store import Store
from m3.evaluation.sweep import command as sweep
from m3.model.cost import CostModel
from tests.evaluation.conftest import make_image, save_model

LADDER: list[int | str] = ["1@8", "9@12", "4@16", 9, 36]
SWEPT = ["4@16", "9@12", "9", "36"]
"""In the order of budgets: fewest tokens first, of as many the lowest resolution."""


@pytest.fixture(scope="module")
def elastic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "elastic", scales=LADDER)


@pytest.fixture(scope="module")
def elastic(elastic_folder: Path) -> Engine:
    return Engine.load(str(elastic_folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, elastic_folder: Path, task_folder: Path) -> Path:
    """36@24 is 36: the encoder's images have 24 pixels."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    options = ["--tasks", "tiny_one", "--scales", "36@24,9@12,4@16,9", "--batch-size", "2"]
    options += ["--include-path", str(task_folder), "--device", "cpu", "--out", str(folder)]
    assert sweep.main([str(elastic_folder), *options]) == 0
    return folder


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open() as file:
        return list(csv.DictReader(file))


def ask(engine: Engine, index: int, scale: int | str) -> Question:
    messages = [{"role": "user", "content": "<image>\nWhich?"}]
    picture = Picture.of(make_image(index))
    return engine.question(messages, [picture], scale, Decoding(max_new_tokens=4))


@torch.no_grad()
def by_hand(engine: Engine, question: Question) -> str:
    """The answer of processor and model alone, unbatched."""
    images = [picture.image for picture in question.pictures]
    inputs = engine.processor(
        images=images, text=question.text, matryoshka_vis_token_scale=question.scale
    )
    output = engine.model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    new_ids = output[0, inputs["input_ids"].shape[1] :]
    answer = engine.processor.tokenizer.decode(new_ids, skip_special_tokens=True)
    return question.decoding.cut(answer)


def test_a_batch_of_resolutions_answers_as_the_model_does(elastic: Engine) -> None:
    """And every picture is seen once at each resolution."""
    settings = [*SWEPT, "36@24", "1@12"]
    questions = [
        ask(elastic, index, int(s) if s.isdigit() else s) for index in range(3) for s in settings
    ]
    seen_before = elastic.pictures.images_seen
    replies = {index: reply for batch in elastic.answer(questions, 4) for index, reply in batch}
    for index, question in enumerate(questions):
        assert replies[index].text == by_hand(elastic, question)
        assert replies[index].visual_tokens == elastic.processor.budget(question.scale).tokens
    assert elastic.pictures.images_seen - seen_before == 3 * len({"12", "16", "24"})


def test_a_sweep_stores_the_answers_of_each_budget(run: Path, elastic: Engine) -> None:
    cells = rows(run, "cells.csv")
    assert [cell["scale"] for cell in cells] == SWEPT
    assert [cell["visual_tokens"] for cell in cells] == ["4.0", "9.0", "9.0", "36.0"]
    with Store(run / "store") as store:
        for scale in ("9@12", 9):
            keys = read_keys(run, "elastic", "tiny_one", scale)
            for doc_id, key in keys.items():
                text = f"<image>\nWhich colour{'s' * (doc_id % 3)}?"
                question = elastic.question(
                    [{"role": "user", "content": text}],
                    [Picture.of(make_image(doc_id))],
                    scale,
                    Decoding(max_new_tokens=4, until=("\n",)),
                )
                assert store.answer(key).text == by_hand(elastic, question)
                assert store.answer(key).cell.scale == scale


def test_costs_are_those_of_the_formulas_at_the_resolution(run: Path, elastic: Engine) -> None:
    formulas = CostModel(elastic.model)
    costs = {row["scale"]: row for row in rows(run, "cost.csv") if not row["task"]}
    with Store(run / "store") as store:
        for scale in SWEPT:
            keys = read_keys(run, "elastic", "tiny_one", scale).values()
            expected = [formulas.cost(scale, store.answer(key).text_tokens) for key in keys]
            for name in ("vision_flops", "connector_flops", "prefill_flops", "visual_tokens"):
                mean = sum(vars(cost)[name] for cost in expected) / len(expected)
                assert int(costs[scale][name]) == round(mean), (scale, name)
    flops = [int(costs[scale]["vision_flops"]) for scale in ("9@12", "4@16", "9", "36")]
    assert flops == sorted(flops) and flops[2] == flops[3]


def test_the_report_holds_the_labels(run: Path) -> None:
    report.main([str(run), "--formats", "svg"])
    assert [row["scale"] for row in rows(run, "summary.csv")] == SWEPT
    for name in ("scores", "cost", "latency", "retention", "differences"):
        for ending in ("md", "tex"):
            assert "9@12" in (run / "tables" / f"{name}.{ending}").read_text()
    html = (run / "report.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert data["scales"] == ["4@16", "9@12", 9, 36]
    assert set(data["scores"]["elastic"]["tiny_one"]) == set(SWEPT)
    assert "■ 12 pixels, ▲ 16 pixels, ● the largest" in html
    grid = data["samples"][0]["grids"]["elastic"]["4@16"]
    assert (grid["tokens"], grid["views"][0]["cells"]) == (4, [2, 2])
    assert "16 pixels" in (run / "figures" / "accuracy_vs_cost.svg").read_text()
    assert {row["scale"] for row in rows(run, "expert_load.csv")} == set(SWEPT)


def test_the_table_of_the_run_has_tokens_and_resolution(run: Path) -> None:
    table = m3.load_run(run)
    columns = ["scale", "tokens", "resolution", "is_trained"]
    assert table[columns].values.tolist() == [
        ["4@16", 4, 16, True],
        ["9@12", 9, 12, True],
        [9, 9, 24, True],
        [36, 36, 24, True],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "9@12,36", "--methods", "nesting,fastv"], "fastv .* have no 9@12: .* 36,"),
        (["--scales", "9@10"], "model elastic: .* sees squares of up to 24 pixels in patches of 4"),
        (["--scales", "36@48"], "model elastic: 36@48: the model sees images of at most 24 pix"),
        (["--scales", "36@12"], "model elastic: scale 36 cannot be reached .* choose one of 1, 9"),
        (["--scales", "9@x"], "--scales takes numbers .* such as 36@48, .*; got '9@x'"),
    ],
)
def test_budgets_out_of_reach_are_refused(
    tmp_path: Path, elastic_folder: Path, task_folder: Path, options: list[str], message: str
) -> None:
    given = ["--tasks", "tiny_one", "--include-path", str(task_folder), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        sweep.main([str(elastic_folder), *given, *options])


def test_the_harness_takes_a_budget_with_a_resolution(elastic: Engine) -> None:
    check_scale(elastic, "9@12")
    assert elastic.default_scale == 36
    with pytest.raises(ValueError, match="tokens at a resolution such as 36@48, or auto, got True"):
        check_scale(elastic, True)
    with pytest.raises(ValueError, match="scale 4 cannot be reached"):
        check_scale(elastic, "4@12")


@pytest.mark.parametrize(
    ("name", "cell"),
    [("pope@36", ("pope", 36)), ("pope@36@48", ("pope", "36@48")), ("a@b@9@12", ("a@b", "9@12"))],
)
def test_names_of_cells(name: str, cell: tuple[str, int | str]) -> None:
    assert read_cell_name(name) == cell


def test_time_is_measured_at_the_resolution(elastic: Engine) -> None:
    found = measure(elastic.model, ["9@12", 9], text_tokens=4, repeats=5, warm_up=1, tokens=1)
    assert [(measured.scale, measured.repeats) for measured in found] == [("9@12", 5), (9, 5)]
    assert all(measured.first_token_cpu_s > 0 for measured in found)


def test_a_low_quantile_and_its_spread() -> None:
    """What disturbs some repetitions moves neither; a part that is slow as a whole is spread."""
    quiet = [1.0, 1.1, 1.0, 1.1] * 4
    disturbed = [*quiet[:4], 9.0, *quiet[5:15], 5.0]
    assert low_quantile(disturbed) == pytest.approx(low_quantile(quiet)) == pytest.approx(1.0)
    assert spread(disturbed) == pytest.approx(0.0, abs=0.05)
    assert spread([1.0] * 4 + [2.0] * 4 + [1.0] * 8) == pytest.approx(1.0)
    assert (low_quantile([3.0]), spread([3.0])) == (3.0, 0.0)


def test_times_within_the_spread_are_one_level() -> None:
    times = [(1, 5.2, 0.1), ("9@12", 5.0, 0.3), (9, 5.1, 0.1), (36, 7.0, 0.2)]
    found = levels(times)
    assert [level.scales for level in found] == [(1, "9@12", 9), (36,)]
    assert [level.seconds for level in found] == pytest.approx([5.1, 7.0])
