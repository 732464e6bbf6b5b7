"""Tasks as they should not be, in one sweep: nothing is scored wrong, nothing is failed without
a word, the report opens.
"""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report import command as report
from m3.evaluation.results.run_folder import CellRow, read_rows
from m3.evaluation.sweep import sweep
from tests.evaluation.conftest import TASK
from tests.evaluation.test_report import Links, page_json
from tests.evaluation.test_sweep import run_sweep

DOCUMENTS = 6
UTILS = """
import math

import numpy as np
import torch
from PIL import Image


def picture(doc):
    return [doc["image"].convert("RGB")]


def nothing(doc):
    return []


def odd_modes(doc):
    number = int(doc["question"].split()[1].strip("?"))
    grey = doc["image"].convert("L")
    wide = Image.new("I;16", grey.size, 40_000)
    return [[doc["image"].convert("RGBA"), doc["image"].convert("P"), doc["image"].convert("CMYK"), wide][number % 4]]


def right(doc, results):
    return {"acc": float(doc["question"] < "Question 3")}


def hundreds(doc, results):
    return {"acc": {"score": float(doc["question"] < "Question 3")}}


def in_hundreds(items):
    return 100 * sum(item["score"] for item in items) / len(items)


def not_a_number(doc, results):
    return {"acc": math.nan if doc["question"] == "Question 2?" else 1.0}


def two(doc, results):
    return {"acc": 1.0, "other": 0.5}


def scalars(doc, results):
    return {"acc": np.bool_(doc["question"] < "Question 3"), "other": torch.tensor(1.0)}


def mean_scalar(items):
    return np.float32(sum(map(float, items)) / len(items))


def in_words(items):
    return "seven of nine"


def empty(dataset):
    return dataset.select([])


def talk(doc):
    text = "</script><img src=x onerror=alert(1)> größer als 5 % & mehr? " + doc["question"]
    parts = [{"type": "image", "url": doc["image"].convert("RGB")}, {"type": "text", "text": text}]
    return [{"role": "system", "content": [{"type": "text", "text": "You see."}]}, {"role": "user", "content": parts}]
"""
GENERATE = """
output_type: generate_until
generation_kwargs: {{max_new_tokens: 2, temperature: 0, do_sample: false, until: ["\\n"]}}
task: {name}
process_results: !function utils.{process}
metric_list: [{metrics}]
"""
ACC = "{metric: acc, aggregation: mean, higher_is_better: true}"
OTHER = "{metric: other, aggregation: mean, higher_is_better: true}"
TASKS = {  # name -> (process_results, metrics, the rest)
    "odd_nan": ("not_a_number", ACC, ""),
    "odd_empty": ("right", ACC, "process_docs: !function utils.empty\n"),
    "odd_texts": ("right", ACC, "doc_to_visual: !function utils.nothing\n"),
    "odd_hundreds": ("hundreds", ACC.replace("mean", "!function utils.in_hundreds"), ""),
    "odd_scalars": (
        "scalars",
        f"{ACC.replace('mean', '!function utils.mean_scalar')}, "
        f"{OTHER.replace('mean', '!function utils.mean_scalar')}",
        "",
    ),
    "odd_words": ("two", f"{ACC.replace('mean', '!function utils.in_words')}, {OTHER}", ""),
    "odd_modes": ("right", ACC, "doc_to_visual: !function utils.odd_modes\n"),
    "odd_größe_&_<b>": ("right", ACC, "doc_to_messages: !function utils.talk\n"),
}
TALK = "odd_größe_&_<b>"
FAILED = {"odd_nan", "odd_empty", "odd_words"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, task_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    for index, (name, (process, metrics, rest)) in enumerate(TASKS.items()):
        text = TASK.replace("utils.doc_to_visual", "utils.picture").format(
            folder=task_folder, file="two"
        )
        lines = [
            line for line in text.splitlines() if line.split(":")[0] not in rest or not line.strip()
        ]
        # its pictures are in its messages alone, as some tasks of the harness have them
        if name == TALK:
            lines = [line for line in lines if not line.startswith("doc_to_visual")]
        text = (
            "\n".join(lines)
            + "\n"
            + rest
            + GENERATE.format(name=name, process=process, metrics=metrics)
        )
        (tasks / f"{index}.yaml").write_text(text, encoding="utf-8")
    model = shutil.copytree(model_folder, folder / "modèle_&_<b>%")
    assert run_sweep(folder / "run", tasks, model, tasks=",".join(TASKS), scales="1,36") == 1
    return folder / "run"


@pytest.fixture(scope="module")
def cells(run: Path) -> dict[tuple[str, str, int], CellRow]:
    return {
        (cell.task, cell.metric, cell.scale): cell for cell in read_rows(run / "cells.csv", CellRow)
    }


def test_every_cell_is_scored_or_failed_in_its_own_words(
    cells: dict[tuple[str, str, int], CellRow],
):
    assert {task for task, _, _ in cells} == set(TASKS)
    for (task, metric, _), cell in cells.items():
        assert (cell.status == "failed") == (task in FAILED and metric != "other"), cell
    assert (
        "the harness gave no number for any metric of odd_nan" in cells["odd_nan", "acc", 1].error
    )
    assert "the task has no documents" in cells["odd_empty", "", 1].error
    said = cells["odd_words", "acc", 36].error
    assert "no number for acc, the metric of odd_words that tables show; it gave other 0.5" in said
    assert cells["odd_words", "other", 36].value == 0.5


def test_documents_without_a_picture_stand_for_themselves(
    run: Path, cells: dict[tuple[str, str, int], CellRow]
):
    texts = cells["odd_texts", "acc", 36]
    assert (texts.n, texts.clusters, texts.visual_tokens) == (DOCUMENTS, DOCUMENTS, 0)
    # of three rights and three wrongs
    assert texts.stderr == pytest.approx(math.sqrt(0.25 / (DOCUMENTS - 1)))
    samples = Summary.read(run).samples["modèle_&_<b>%", "odd_texts"]
    assert len(set(samples.images)) == DOCUMENTS
    # two questions about each picture
    assert cells["odd_hundreds", "acc", 36].clusters == DOCUMENTS // 2


def test_the_error_is_in_the_unit_of_the_score(
    run: Path, cells: dict[tuple[str, str, int], CellRow]
):
    """Rights and wrongs that the task averages to per cents: the harness's own error is a
    hundredth of it.
    """
    cell, plain = (
        cells["odd_hundreds", "acc", 36],
        Summary.read(run).score("modèle_&_<b>%", "odd_hundreds", 36),
    )
    assert (cell.value, plain.value) == (50.0, 50.0)
    # of the three pictures: (score - mean) of two questions each; 0 and 1, 2 and 3, 4 and 5
    sums = [1.0, 0.0, -1.0]
    assert cell.stderr == pytest.approx(
        100 * math.sqrt(3 / 2 * sum(x * x for x in sums)) / DOCUMENTS
    )
    assert plain.stderr == pytest.approx(cell.stderr)


def test_scalars_of_numpy_and_torch_are_scores(
    run: Path, cells: dict[tuple[str, str, int], CellRow]
):
    cell = cells["odd_scalars", "acc", 36]
    assert (cell.value, cell.unit, cells["odd_hundreds", "acc", 36].unit) == (
        0.5,
        "share",
        "percent",
    )
    assert cell.stderr == pytest.approx(cells["odd_hundreds", "acc", 36].stderr / 100)
    other = cells["odd_scalars", "other", 36]
    assert (other.value, other.stderr) == (1.0, 0.0)
    assert "odd_scalars" in {task for _, task in Summary.read(run).samples}


def test_pictures_of_every_mode_are_seen_and_shown(
    run: Path, cells: dict[tuple[str, str, int], CellRow]
):
    assert cells["odd_modes", "acc", 36].value == 0.5
    shown = [
        row
        for row in json.loads((run / "examples" / "examples.json").read_text())
        if row["task"] == "odd_modes"
    ]
    assert len(shown) == DOCUMENTS and all(
        (run / "examples" / row["image"]).stat().st_size > 50 for row in shown
    )
    assert all(row["size"] == [24, 24] for row in shown)


def test_the_report_opens_and_nothing_of_the_data_is_markup(run: Path):
    assert report.main([str(run)]) == 0
    html = (run / "report.html").read_text(encoding="utf-8")
    data = page_json(html)  # strict JSON, as a browser reads it
    assert not any(isinstance(x, float) and not math.isfinite(x) for x in _numbers(data))
    parser = Links()
    parser.feed(html)
    assert [link for link in parser.links if not link.startswith("#")] == []  # its own places
    assert "img" not in parser.open and "b" not in parser.open
    talk = [sample for sample in data["samples"] if sample["task"] == TALK]
    assert len(talk) == DOCUMENTS
    assert talk[0]["question"].startswith(
        "</script><img src=x onerror=alert(1)> größer als 5 % & mehr? Question"
    )
    latex = (run / "tables" / "scores.tex").read_text(encoding="utf-8")
    assert (
        r"größe\_\&\_\textless{}b\textgreater{}" in latex
        and r"modèle\_\&\_\textless{}b\textgreater{}\%" in latex
    )
    markdown = (run / "tables" / "scores.md").read_text(encoding="utf-8")
    assert "&lt;b>" in markdown and "<b>" not in markdown


def test_a_task_of_texts_alone_has_its_own_cost_and_no_place_on_an_axis_of_tokens(run: Path):
    data = page_json((run / "report.html").read_text(encoding="utf-8"))
    costs = data["taskCosts"]["modèle_&_<b>%"]
    assert (
        costs["odd_texts"]["36"]["visual_tokens"]
        == 0
        < costs["odd_modes"]["36"]["visual_tokens"]
        == 36
    )
    with (run / "cost.csv").open() as file:
        assert {row["task"] for row in csv.DictReader(file)} == {"", *TASKS} - FAILED
    drawn = (run / "figures" / "accuracy_vs_cost.svg").read_text(encoding="utf-8")
    assert "no score, or no picture in the prompts" in drawn


def _numbers(value: object) -> list[object]:
    if isinstance(value, dict):
        return [x for part in value.values() for x in _numbers(part)]
    return [x for part in value for x in _numbers(part)] if isinstance(value, list) else [value]


def test_a_sweep_that_was_killed_shows_nothing_of_the_one_before_it(
    run: Path,
    tmp_path: Path,
    model_folder: Path,
    task_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Same folder, another model, killed after its first cells: tables of that model alone, and
    no error.
    """
    folder = shutil.copytree(run, tmp_path / "run")
    score, count = sweep.run_cell, []

    def killed(*given: object) -> object:
        count.append(given)
        if len(count) > 2:
            raise KeyboardInterrupt
        return score(*given)

    monkeypatch.setattr(sweep, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(folder, task_folder, model_folder, tasks="tiny", scales="1,36")
    summary = Summary.read(folder)
    assert [model.name for model in summary.models] == ["tiny"]
    assert summary.tasks == ("tiny_one",) and summary.costs == () and summary.examples == ()
    assert report.main([str(folder)]) == 0


def test_a_baseline_is_looked_at_before_anything_is_computed(
    run: Path, tmp_path: Path, model_folder: Path
):
    with pytest.raises(ValueError, match="nowhere/cells.csv is missing"):
        run_sweep(
            tmp_path / "new", tmp_path, model_folder, extra=f"--baseline {tmp_path / 'nowhere'}"
        )
    with pytest.raises(
        ValueError, match="is the folder of --out: the sweep would be compared with itself"
    ):
        run_sweep(run, tmp_path, model_folder, extra=f"--baseline {run}")
    assert not (tmp_path / "new").exists()
