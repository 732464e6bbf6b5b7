"""Expected calibration error against values worked out by hand, and where reports show it."""

import json
from pathlib import Path

import numpy as np
import pytest

from m3.evaluation.analysis.calibration import Bin, calibration
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report import command as report
from m3.evaluation.report.calibration_table import calibration_table
from m3.evaluation.results.run_folder import CellRow, read_rows
from tests.evaluation.conftest import SUITE, SWEPT, make_run


def test_error_by_hand():
    """Two bins of two: |0.3 - 0.5| and |0.85 - 1|, each of half the weight."""
    found = calibration([0.9, 0.2, 0.8, 0.4], [1.0, 0.0, 1.0, 1.0], bins=2)
    assert [(one.confidence, one.accuracy, one.n) for one in found.bins] == [
        (pytest.approx(0.3), 0.5, 2),
        (pytest.approx(0.85), 1.0, 2),
    ]
    assert (found.error, found.confidence, found.n) == (
        pytest.approx(0.5 * 0.2 + 0.5 * 0.15),
        pytest.approx(0.575),
        4,
    )


@pytest.mark.parametrize(
    ("sure", "scores", "error"),
    [([1.0, 1.0], [1.0, 1.0], 0.0), ([1.0, 1.0], [0.0, 0.0], 1.0), ([0.25], [1.0], 0.75)],
)
def test_ends_of_the_range(sure: list[float], scores: list[float], error: float):
    assert calibration(sure, scores).error == error


def test_fewer_answers_than_bins():
    assert calibration([0.5, 0.1], [0.0, 0.0]).bins == (Bin(0.1, 0.0, 1), Bin(0.5, 0.0, 1))


def test_the_order_of_equally_sure_answers_tells_nothing():
    assert calibration([0.5] * 100, [0.0] * 50 + [1.0] * 50).error == 0.0
    rng = np.random.default_rng(0)
    for levels in (1, 3, 7, 1000):
        sure, right = rng.integers(0, levels + 1, 97) / (levels + 1), rng.random(97)
        expected = calibration(sure.tolist(), right.tolist())
        for _ in range(20):
            order = rng.permutation(97)
            assert calibration(sure[order].tolist(), right[order].tolist()) == expected


@pytest.mark.parametrize("lengths", [(2, 1), (0, 0)])
def test_one_score_per_confidence(lengths: tuple[int, int]):
    with pytest.raises(
        ValueError,
        match=rf"{lengths[0]} confidences for {lengths[1]} scores; one "
        r"of each per answer",
    ):
        calibration([0.5] * lengths[0], [1.0] * lengths[1])


def give_confidence(run: Path, task: str, confidence: float) -> None:
    """Rewrites a run's store: every answer to `task` is as sure."""
    (path,) = (run / "store").glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "answer" and record["task_name"] == task:
            record["confidence"] = confidence
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_report_shows_it_where_there_is_confidence(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=20, tasks=SUITE[:2])
    assert calibration_table(Summary.read(run)).rows == []  # none recorded: no table
    give_confidence(run, SUITE[0], 0.75)
    assert report.main([str(run), "--formats"]) == 0
    summary = Summary.read(run)
    table = calibration_table(summary)
    assert table.header == ["tokens", "scene", "mean", "confidence"]  # the other task has none
    assert len(table.rows) == 2 * len(SWEPT)
    scores = summary.samples["m3-tiny", SUITE[0]].at(1)
    by_hand = abs(0.75 - scores.mean())  # all as sure: their order tells nothing
    assert table.rows[0] == ["1", f"{100 * by_hand:.1f}", f"{100 * by_hand:.1f}", "75.0"]
    assert (run / "tables" / "calibration.md").exists()
    assert "Expected calibration error" in (run / "report.html").read_text()
    assert summary.calibration("m3-tiny", SUITE[1], 1) is None


def test_a_run_without_confidences_has_no_table_of_them(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4, tasks=SUITE[:1])
    assert {cell.confidence for cell in read_rows(run / "cells.csv", CellRow)} == {None}
    assert report.main([str(run), "--formats"]) == 0
    assert not (run / "tables" / "calibration.md").exists()


def test_a_table_with_other_columns_is_refused(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4, tasks=SUITE[:1])
    lines = (run / "cells.csv").read_text().splitlines()
    assert lines[0].endswith(",error,confidence,higher_is_better,unit")
    (run / "cells.csv").write_text("".join(line.rsplit(",", 3)[0] + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"cells\.csv has columns .*, expected .*'unit'\]"):
        read_rows(run / "cells.csv", CellRow)
