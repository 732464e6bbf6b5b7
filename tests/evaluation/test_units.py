"""Units of metrics are recorded with the cell, and scores follow them however small they are;
run folders that are not whole.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.harness.scoring import unit_of_scores
from m3.evaluation.harness.tasks import find_tasks, tasks_folder
from m3.evaluation.report import command as report
from m3.evaluation.results.run_folder import CellRow, read_rows, write_rows
from m3.evaluation.sweep import during_training as live
from m3.evaluation.sweep.options import parse_options
from m3.evaluation.sweep.sweep import find
from tests.evaluation.conftest import make_run

TASKS = ("a_scene", "a_words")


def change(run: Path, edit: Callable[[CellRow], CellRow]) -> Summary:
    write_rows(
        run / "cells.csv", CellRow, [edit(cell) for cell in read_rows(run / "cells.csv", CellRow)]
    )
    return Summary.read(run)


def test_a_half_per_cent_is_a_half_per_cent(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=20, tasks=TASKS)

    def small(cell: CellRow) -> CellRow:
        return (
            replace(cell, value=0.5, stderr=0.4, unit="percent")
            if cell.task == "a_scene"
            else replace(cell, unit="share")
        )

    summary = change(run, small)
    score = summary.score("m3-tiny", "a_scene", 36)
    assert score is not None and (score.value, score.stderr) == (0.5, 0.4)
    other, mean = summary.score("m3-tiny", "a_words", 36), summary.mean("m3-tiny", 36)
    assert (
        other is not None
        and mean is not None
        and mean.value == pytest.approx((0.5 + other.value) / 2)
    )
    assert summary.unknown_units == () and "unit" not in summary.direction_note
    assert report.main([str(run), "--formats"]) == 0


def test_points_are_no_share_however_small(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=20, tasks=TASKS)
    summary = change(
        run, lambda cell: replace(cell, unit="points" if cell.task == "a_scene" else "share")
    )
    assert summary.averaged == ("a_words",) and summary.percent("a_scene") == 1.0
    assert "The mean leaves out scene" in summary.direction_note


def test_a_run_without_units_says_what_is_taken(tmp_path: Path):
    summary = Summary.read(make_run(tmp_path / "run", documents=20, tasks=TASKS))
    assert summary.unknown_units == TASKS and summary.percent("a_scene") == 100.0
    assert "The run does not record the unit of scene, words" in summary.direction_note


@pytest.mark.parametrize(
    ("scores", "factors", "unit"),
    [
        ([0.0, 1.0], [1.0], "share"),
        ([0.0, 1.0], [100.0], "percent"),
        ([0.0, 80.0], [1.0], "percent"),
        ([0.0, 800.0], [1.0], "points"),
        ([-1.0, 1.5], [1.0], "points"),
        ([0.0, 0.0], [1.0, 100.0], ""),  # the same in every unit
        ([0.0, 1.0], [], ""),
    ],
)
def test_the_unit_is_that_of_the_documents(scores: list[float], factors: list[float], unit: str):
    assert unit_of_scores(scores, factors) == unit


def test_live_means_are_over_shares(tmp_path: Path):
    cells = read_rows(
        make_run(tmp_path / "run", documents=20, tasks=(*TASKS, "a_sum")) / "cells.csv", CellRow
    )
    cells = [cell for cell in cells if cell.model == "m3-tiny" and cell.scale == 36]
    units = {"a_scene": (0.5, "percent"), "a_words": (0.5, "share"), "a_sum": (0.5, "points")}
    found = live.scores(
        [replace(cell, value=units[cell.task][0], unit=units[cell.task][1]) for cell in cells]
    )
    assert found["eval_a_scene_scale_36"] == 0.5 and found["eval_mean_scale_36"] == pytest.approx(
        (0.005 + 0.5) / 2
    )


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("store", "store has no answers: the report is made of them"),
        ("results", "results/m3-tiny.*json is missing: the run folder is not whole"),
        ("models.json", "models.json is missing: the run folder is not whole"),
        ("baselines.json", "baselines.json is missing"),
        ("environment.json", "environment.json is missing"),
        ("cost.csv", "cost.csv is missing"),
    ],
)
def test_what_a_run_folder_lacks_is_named(tmp_path: Path, lost: str, words: str):
    run = make_run(tmp_path / "run", documents=4, tasks=TASKS)
    path = run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=words):
        report.main([str(run), "--formats"])
    assert not (run / "store").exists() or lost != "store"


@pytest.mark.parametrize(
    "name", ["models.json", "baselines.json", "environment.json", "results/m3-tiny/a_words@36.json"]
)
@pytest.mark.parametrize("text", ['[{"name": ', "", "[1]"])
def test_a_cut_or_foreign_file_of_a_run_folder_is_named(tmp_path: Path, name: str, text: str):
    run = make_run(tmp_path / "run", documents=4, tasks=TASKS)
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.*run the sweep again"):
        report.main([str(run), "--formats"])


def test_a_part_of_the_store_that_is_missing_is_named(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4, tasks=TASKS)
    (path,) = (run / "store").glob("*.jsonl")
    lines = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if '"kind": "answer"' not in line
    ]
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match="store has no answer .*: a part of the store is missing"):
        report.main([str(run), "--formats"])


def test_a_folder_of_tasks_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = [
        "m",
        "--tasks",
        "plain",
        "--out",
        str(tmp_path / "run"),
        "--include-path",
        str(tmp_path / "typo"),
    ]
    with pytest.raises(ValueError, match="--include-path .*typo is no folder; give one with tasks"):
        find(parse_options(options), ["plain"])
    monkeypatch.chdir(tmp_path)
    assert tasks_folder(Path("lmms_eval_tasks")) is None
    with pytest.raises(
        ValueError,
        match=r"no task 'zzzqqq' in lmms-eval \(lmms_eval_tasks is not here\). It has "
        r"[\d,]+; no name",
    ):
        find_tasks(["zzzqqq"], None)
