"""Two runs against each other, on run folders whose difference is known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from m3.evaluation.analysis.compare import (
    Change,
    Side,
    change_text,
    comparable,
    compare,
    difference,
    not_compared,
)
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report import command as report
from m3.evaluation.report import tables as report_tables
from m3.evaluation.results.run_folder import CellRow, read_rows, write_rows
from m3.evaluation.results.store import Store
from m3.evaluation.sweep.baseline import fallen
from tests.evaluation.conftest import SUITE, SWEPT, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "as it was": make_run(folder / "was"),
        "worse": make_run(folder / "worse", lift=-0.3),
        "other data": make_run(folder / "other", tasks=("elsewhere_a", "elsewhere_b")),
    }


def drops(new: Path, old: Path) -> list[Change]:
    return [change for change in compare(Summary.read(new), Summary.read(old)) if change.is_drop]


def test_a_run_has_not_changed_from_itself(runs: dict[str, Path]):
    same = Summary.read(runs["as it was"])
    changes = compare(same, Summary.read(runs["as it was"]))
    assert len(changes) == 2 * len(SWEPT) * (1 + len(SUITE))
    assert {change.difference.value for change in changes} == {0.0}
    assert not any(change.is_significant for change in changes)
    assert drops(runs["as it was"], runs["as it was"]) == []


def test_a_drop_is_found_and_a_rise_is_none(runs: dict[str, Path]):
    fallen = drops(runs["worse"], runs["as it was"])
    means = [change for change in fallen if change.task is None and change.model == "m3-tiny"]
    assert [change.scale for change in means] == list(SWEPT)
    for change in means:
        assert change.difference.value == pytest.approx(-30, abs=12)
        assert change.difference.high < 0
        assert change.p <= change.p_holm < 0.05
        assert change.difference.n == 40 * len(SUITE)
    assert drops(runs["as it was"], runs["worse"]) == []
    assert "m3-tiny at 1 tokens, mean of the tasks: FELL, -" in change_text(means[0])


def test_a_sweep_fails_on_what_fell_against_its_baseline(
    runs: dict[str, Path], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    found = fallen(runs["worse"], runs["as it was"])
    assert found == drops(runs["worse"], runs["as it was"])
    assert "m3-tiny at 9 tokens, mean of the tasks: FELL" in caplog.text
    assert fallen(runs["as it was"], runs["as it was"]) == []
    assert "mean of the tasks: within the noise, +0.0" in caplog.text


def test_mean_differences_equal_the_table(runs: dict[str, Path]):
    summary = Summary.read(runs["as it was"])
    found = difference(Side(summary, "m3-tiny", 1), Side(summary, "m3-tiny", 36))
    low, high = summary.mean("m3-tiny", 1), summary.mean("m3-tiny", 36)
    assert found is not None and low is not None and high is not None
    assert found.value == pytest.approx(low.value - high.value)
    assert found.low < found.value < found.high < 0


def in_hundreds(run: Path, points: float) -> Path:
    """The same run with scores reported in hundreds (as Video-MME's), and its documents' scores
    times `points`.
    """
    cells = [
        replace(cell, value=100 * (cell.value or 0.0))
        for cell in read_rows(run / "cells.csv", CellRow)
    ]
    write_rows(run / "cells.csv", CellRow, cells)
    with Store(run / "store") as store:
        keys = [
            key
            for path in (run / "results").rglob("*.json")
            for key in json.loads(path.read_text())["m3_keys"].values()
        ]
        store.add_scores(
            {key: {name: points * x for name, x in store.scores(key).items()} for key in keys}
        )
    return run


def test_documents_count_in_the_unit_of_the_table(tmp_path: Path):
    tasks = ("elsewhere_a",)
    plain = Summary.read(make_run(tmp_path / "plain", tasks=tasks))
    hundreds = Summary.read(in_hundreds(make_run(tmp_path / "hundreds", tasks=tasks), 1.0))
    assert hundreds.units == plain.units == {"elsewhere_a": 100.0}
    found = [
        difference(Side(one, "m3-tiny-base", 1), Side(one, "m3-tiny-base", 36))
        for one in (plain, hundreds)
    ]
    assert found[0] == found[1] is not None and abs(found[0].value) > 10  # not a hundredth of it
    same = Summary.read(in_hundreds(make_run(tmp_path / "same", tasks=tasks), 100.0))
    assert same.units == {"elsewhere_a": 1.0}
    judged = Summary.read(
        in_hundreds(make_run(tmp_path / "judged", tasks=("a_b", "c_d")), 5.0)
    )  # 0 to 5 under an accuracy
    assert judged.units == {}
    assert difference(Side(judged, "m3-tiny", 1), Side(judged, "m3-tiny", 36)) is None
    with pytest.raises(ValueError, match="no model has scores by document in both"):
        compare(judged, judged)
    assert (
        not_compared(judged, judged)[0] == "a_b of m3-tiny (failed, or without scores by document)"
    )
    assert len(not_compared(judged, judged)) == 2 * 2
    assert not_compared(plain, hundreds) == []


def without_scores(run: Path, task: str, *scales: int) -> Path:
    """The same run, the documents of a task without scores of their own; or (`scales`) its cells
    failed there.
    """
    cells = read_rows(run / "cells.csv", CellRow)
    if scales:
        gone = {"status": "failed", "value": None, "stderr": None, "error": "lost"}
        cells = [
            replace(c, **gone) if (c.task, c.scale in scales) == (task, True) else c for c in cells
        ]
        write_rows(run / "cells.csv", CellRow, cells)
        return run
    keys = {
        key
        for path in run.glob(f"results/*/{task}@*.json")
        for key in json.loads(path.read_text())["m3_keys"].values()
    }
    for path in (run / "store").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [
            record for record in records if record["kind"] != "score" or record["key"] not in keys
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return run


def test_a_mean_is_compared_over_the_tasks_that_can_be_and_says_so(tmp_path: Path):
    tasks = ("a_scene", "a_words", "a_points")
    summary = Summary.read(
        without_scores(make_run(tmp_path / "run", documents=20, tasks=tasks), "a_points")
    )
    sides = Side(summary, "m3-tiny", 1), Side(summary, "m3-tiny", 36)
    assert comparable(*sides, summary.averaged) == ("a_scene", "a_words")
    found = difference(*sides)
    means = [
        sum(summary.score("m3-tiny", task, scale).value for task in tasks[:2]) / 2
        for scale in (1, 36)
    ]
    assert found is not None and found.value == pytest.approx(means[0] - means[1]) and found.n == 40
    table = report_tables.differences_table(summary)
    assert {row[-1] for row in table.rows} == {"2 of 3"}
    assert "points: no scores by document in the table's unit in some rows or all" in table.note
    rows = list(csv.DictReader(report_tables.write_csv(summary).open()))
    assert [row["behind_first_tasks"] for row in rows] == [""] * 4 + ["2"] * 4
    (change, *_) = compare(summary, summary)
    assert change.left_out == ("a_points",) and "mean of 2 of 3 tasks" in change_text(change)
    none = Summary.read(without_scores(without_scores(tmp_path / "run", "a_scene"), "a_words"))
    table = report_tables.differences_table(none)
    assert {tuple(row[1:]) for row in table.rows} == {("–", "–", "–", "0 of 3")}


def test_what_a_baseline_lacks_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A cell that failed in one of the runs, a scale and a model of one alone: they cannot have
    fallen, and are not silent.
    """
    new, old = (
        make_run(tmp_path / name, documents=8, tasks=("a_scene", "a_words"))
        for name in ("new", "old")
    )
    without_scores(old, "a_words", 4, 9)
    models = json.loads((old / "models.json").read_text())
    (old / "models.json").write_text(json.dumps(models[:1]))
    cells = [
        cell
        for cell in read_rows(old / "cells.csv", CellRow)
        if cell.scale != 36 and cell.model == "m3-tiny"
    ]
    write_rows(old / "cells.csv", CellRow, cells)
    assert fallen(new, old) == []
    assert not_compared(Summary.read(new), Summary.read(old)) == [
        "the model m3-tiny-base",
        "36 tokens",
        "a_words of m3-tiny at 4, 9 tokens (failed, or without scores by document)",
    ]
    assert "NOT compared with" in caplog.text and "a_words of m3-tiny at 4, 9 tokens" in caplog.text


def test_a_run_of_three_documents_is_no_proof(tmp_path: Path):
    """All three fell, at every scale: what is sure by its error of zero is one of eight tosses
    of a coin.
    """
    new, old = (
        make_run(tmp_path / name, documents=6, tasks=("a_scene",), lift=lift)
        for name, lift in (("n", -2), ("o", 2))
    )
    changes = compare(Summary.read(new), Summary.read(old))
    assert {change.difference.value for change in changes} == {-100.0}
    assert {change.p for change in changes} == {0.25}  # two documents of each picture
    assert not any(change.is_drop for change in changes)


def test_report_of_two_runs(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert report.main([str(runs["worse"]), str(runs["as it was"]), "--formats"]) == 0
    assert "m3-tiny at 36 tokens, mean of the tasks: FELL, -" in capsys.readouterr().out
    html = (runs["worse"] / "report.html").read_text()
    assert "This run minus the other, on the same documents" in html
    assert "<td>worse</td>" in html


def test_nothing_in_common_is_an_error(runs: dict[str, Path]):
    with pytest.raises(
        ValueError, match="have nothing to compare: tasks suite_scene.* against elsewhere_a"
    ):
        compare(Summary.read(runs["as it was"]), Summary.read(runs["other data"]))
