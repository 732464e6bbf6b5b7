"""Two runs against each other, on run folders whose difference is known."""

from pathlib import Path

import pytest

from m3.evaluation import report, sweep
from m3.evaluation.compare import Change, Side, compare, described, difference
from m3.evaluation.summary import Summary
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
    assert "m3-tiny at 1 tokens, mean of the tasks: FELL, -" in described(means[0])


def test_a_sweep_fails_on_what_fell_against_its_baseline(runs: dict[str, Path], caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    found = sweep.fallen(runs["worse"], runs["as it was"])
    assert found == drops(runs["worse"], runs["as it was"])
    assert "m3-tiny at 9 tokens, mean of the tasks: FELL" in caplog.text
    assert sweep.fallen(runs["as it was"], runs["as it was"]) == []
    assert "mean of the tasks: within the noise, +0.0" in caplog.text


def test_mean_differences_equal_the_table(runs: dict[str, Path]):
    summary = Summary.read(runs["as it was"])
    found = difference(Side(summary, "m3-tiny", 1), Side(summary, "m3-tiny", 36))
    low, high = summary.mean("m3-tiny", 1), summary.mean("m3-tiny", 36)
    assert found is not None and low is not None and high is not None
    assert found.value == pytest.approx(low.value - high.value)
    assert found.low < found.value < found.high < 0


def test_report_of_two_runs(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert report.main([str(runs["worse"]), str(runs["as it was"])]) == 0
    assert "m3-tiny at 36 tokens, mean of the tasks: FELL, -" in capsys.readouterr().out
    html = (runs["worse"] / "report.html").read_text()
    assert "This run minus the other, on the same documents" in html
    assert "<td>worse</td>" in html


def test_nothing_in_common_is_an_error(runs: dict[str, Path]):
    with pytest.raises(ValueError, match="have nothing to compare: tasks suite_scene.* against elsewhere_a"):
        compare(Summary.read(runs["as it was"]), Summary.read(runs["other data"]))
