"""A metric where less is better, against the same run told as accuracies: every choice of a best
must be the same.
"""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3.evaluation.analysis.compare import Change, change_text, compare
from m3.evaluation.analysis.metric_kind import Kind, towards_better
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report import command as report
from m3.evaluation.report import tables as report_tables
from m3.evaluation.report.table_formats import as_latex
from m3.evaluation.results.run_folder import CellRow, read_rows, write_rows
from m3.evaluation.sweep import sweep
from tests.evaluation.conftest import SUITE, SWEPT, make_run
from tests.evaluation.test_report import page_json
from tests.evaluation.test_sweep import rows, run_sweep

FIRST = SUITE[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same answers as shares of right ones and as shares of errors, and both after the model
    got worse.
    """
    folder = tmp_path_factory.mktemp("direction")
    return {
        "right": make_run(folder / "right"),
        "wrong": make_run(folder / "wrong", errors=SUITE),
        "mixed": make_run(folder / "mixed", errors=[FIRST]),
        "worse": make_run(folder / "worse", errors=SUITE, lift=-0.3),
        "mixed, worse": make_run(folder / "mixed_worse", errors=[FIRST], lift=-0.3),
    }


def found(new: Path, old: Path) -> dict[tuple[str, str | None, int], Change]:
    changes = compare(Summary.read(new), Summary.read(old))
    return {(change.model, change.task, change.scale): change for change in changes}


def test_more_errors_are_a_drop_and_fewer_are_none(runs: dict[str, Path]):
    worse, better = found(runs["worse"], runs["wrong"]), found(runs["wrong"], runs["worse"])
    for scale in SWEPT:
        change = worse["m3-tiny", None, scale]
        assert change.difference.value == pytest.approx(30, abs=12)
        assert change.is_drop and not change.is_for_better
        assert "mean of the tasks: ROSE (less is better), +" in change_text(change)
        assert not better["m3-tiny", None, scale].is_drop
        assert "mean of the tasks: fell (less is better), -" in change_text(
            better["m3-tiny", None, scale]
        )


def test_the_baseline_is_missed_where_errors_rose(runs: dict[str, Path]):
    assert {
        change.scale for change in sweep.fallen(runs["worse"], runs["wrong"]) if change.task is None
    } == set(SWEPT)
    assert sweep.fallen(runs["wrong"], runs["worse"]) == []


def test_a_mixed_run_averages_accuracies_and_judges_each_task_its_own_way(runs: dict[str, Path]):
    changes = found(runs["mixed, worse"], runs["mixed"])
    assert changes["m3-tiny", None, 1].difference.value < 0 and changes["m3-tiny", None, 1].is_drop
    assert changes["m3-tiny", None, 1].difference.n == 40 * 3  # the three accuracies
    errors, accuracy = changes["m3-tiny", FIRST, 9], changes["m3-tiny", SUITE[1], 9]
    assert errors.difference.value > 0 and errors.is_drop
    assert accuracy.difference.value < 0 and accuracy.is_drop


def test_another_metric_or_direction_is_no_comparison(runs: dict[str, Path], tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"suite_scene cannot be compared: .*error_rate \(less is better\), "
        r".*exact_match",
    ):
        compare(Summary.read(runs["wrong"]), Summary.read(runs["right"]))


def test_front_knee_oracle_retention_and_calibration_are_those_of_accuracy(runs: dict[str, Path]):
    right, wrong = Summary.read(runs["right"]), Summary.read(runs["wrong"])
    theirs, ours = report_tables.kept_table(right), report_tables.kept_table(wrong)
    # all but the score
    assert [(row[0], *row[2:]) for row in ours.rows] == [(row[0], *row[2:]) for row in theirs.rows]
    assert "The score counts errors (less is better)" in ours.note
    for model in right.models:
        for task in SUITE:
            good, bad = right.oracle(model.name, task), wrong.oracle(model.name, task)
            assert good is not None and bad is not None
            assert (bad.score, bad.tokens, bad.needs, bad.never) == (
                good.score,
                good.tokens,
                good.needs,
                good.never,
            )
    table = report_tables.oracle_table(wrong)
    assert table.rows[0][0] == "scene (1 - error)"


def test_the_report_says_which_way(runs: dict[str, Path]):
    assert report.main([str(runs["mixed"]), "--formats", "svg"]) == 0
    html, summary = (runs["mixed"] / "report.html").read_text(), Summary.read(runs["mixed"])
    data = page_json(html)
    assert [task["name"] for task in data["tasks"]] == ["scene ↓", "position", "digits", "document"]
    assert {task["kind"] for task in data["tasks"]} == {"less is better, share", data["averaged"]}
    assert "The mean leaves out scene ↓: other units, or another direction." in html
    assert "mean of 3 tasks." in html
    scores = report_tables.scores_table(summary)
    assert scores.header[1] == "scene ↓" and r"scene $\downarrow$" in as_latex(scores)
    assert "less is better" in (runs["mixed"] / "figures" / "accuracy_vs_cost.svg").read_text()
    reply = summary.reply(summary.examples[0], "m3-tiny", 36)
    assert reply is not None and reply.is_right == ("right answer" in reply.text)


def test_the_first_model_is_ahead_with_fewer_errors(runs: dict[str, Path]):
    for name, sign in (("right", 1), ("wrong", -1)):
        assert report.main([str(runs[name]), "--formats"]) == 0
        with (runs[name] / "summary.csv").open() as file:
            behind = next(
                row
                for row in csv.DictReader(file)
                if row["model"] == "m3-tiny-base" and row["scale"] == "1"
            )
        assert (
            0
            < float(behind["behind_first_low"])
            < float(behind["behind_first"])
            < float(behind["behind_first_high"])
        )
        difference = report_tables.differences_table(Summary.read(runs[name])).rows[0][1]
        assert float(difference) == pytest.approx(sign * float(behind["behind_first"]), abs=0.06)


def test_a_run_that_does_not_say_which_way_is_better_says_what_it_takes(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=8, errors=SUITE)
    cells = read_rows(run / "cells.csv", CellRow)
    write_rows(run / "cells.csv", CellRow, [replace(c, higher_is_better=None) for c in cells])
    silent = Summary.read(run)
    assert silent.undirected == SUITE and silent.kinds[FIRST].higher_is_better
    assert (
        "Neither the run nor its tasks say whether more or less is better of scene, position"
        in silent.direction_note
    )


def test_cells_that_contradict_each_other_are_refused(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4)
    cells = read_rows(run / "cells.csv", CellRow)
    assert {cell.higher_is_better for cell in cells} == {True}
    write_rows(
        run / "cells.csv",
        CellRow,
        [*cells[1:], CellRow(**{**vars(cells[0]), "higher_is_better": False})],
    )
    with pytest.raises(
        ValueError, match="says both that more and that less of suite_scene is better"
    ):
        _ = Summary.read(run).kinds


def test_points_are_no_share_however_few(tmp_path: Path):
    """A model with 60 of MME's 2,000 points has not 60 %: they stay out of the mean."""
    run = make_run(tmp_path / "run", documents=8, tasks=("mme", "gqa"))
    cells = read_rows(run / "cells.csv", CellRow)
    write_rows(
        run / "cells.csv",
        CellRow,
        [replace(c, value=60.0) if c.task == "mme" else c for c in cells],
    )
    summary = Summary.read(run)
    assert summary.averaged == ("gqa",) and summary.percent("mme") == 1.0
    assert summary.mean("m3-tiny", 36).value == summary.score("m3-tiny", "gqa", 36).value


def test_no_oracle_where_a_scale_failed(tmp_path: Path):
    """Without the largest scale, what is called the largest would be another."""
    run = make_run(tmp_path / "run", documents=8, tasks=("a_b",))
    cells = read_rows(run / "cells.csv", CellRow)
    gone = [
        c if (c.model, c.scale) != ("m3-tiny", 36) else replace(c, status="failed", value=None)
        for c in cells
    ]
    write_rows(run / "cells.csv", CellRow, gone)
    summary = Summary.read(run)
    assert (
        summary.oracle("m3-tiny", "a_b") is None
        and summary.oracle("m3-tiny-base", "a_b") is not None
    )
    assert (
        "A model's task with a failed scale has no row (a_b)."
        in report_tables.oracle_table(summary).note
    )
    notes = [row[-1] for row in report_tables.kept_table(summary).rows[:3]]
    assert not any("keeps 95 %" in note for note in notes)


def test_an_error_without_an_end_has_no_oracle_but_a_direction():
    distance = Kind(higher_is_better=False, is_share=False)
    assert towards_better(np.array([3.0, 12.5]), distance) is None
    assert towards_better(np.array([0.25, 1.0]), Kind(False, True)).tolist() == [0.75, 0.0]
    assert towards_better(np.array([1400.0]), Kind(True, False)).tolist() == [1400.0]


ERRORS = """
def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]

def process_results(doc, results):
    return {"wrong": float(results[0] != doc["answer"])}
"""


def test_a_sweep_records_what_the_task_says(tmp_path: Path, model_folder: Path, task_folder: Path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(ERRORS)
    text = (task_folder / "tiny_one.yaml").read_text()
    text = re.sub("exact_match", "wrong", text).replace(
        "higher_is_better: true", "higher_is_better: false"
    )
    (tasks / "tiny_one.yaml").write_text(text)
    assert run_sweep(tmp_path / "run", tasks, model_folder, tasks="tiny_one", scales="1,36") == 0
    assert {(cell["metric"], cell["higher_is_better"]) for cell in rows(tmp_path / "run")} == {
        ("wrong", "False")
    }
    assert not Summary.read(tmp_path / "run").kinds["tiny_one"].higher_is_better
