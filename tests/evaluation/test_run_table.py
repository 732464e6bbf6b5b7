"""The tidy table of a run: a row per model, task and budget, with every axis of cost."""

import math
from pathlib import Path

import pytest

import m3
from m3.evaluation.analysis.summary import Summary
from m3.evaluation.cost import axes
from m3.evaluation.cost.axes import COST_AXES, CostAxis
from m3.evaluation.report.charts import panels
from m3.evaluation.report.html import page_data
from m3.evaluation.report.tables import write_csv
from tests.evaluation.conftest import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", documents=4)


def test_the_table_holds_what_the_report_shows(run: Path) -> None:
    table, summary = m3.load_run(run), Summary.read(run)
    models = [model.name for model in summary.models]
    budgets = len(models) * len(summary.scales)
    assert len(table) == budgets * (len(summary.tasks) + 1)
    assert list(table.columns[-len(COST_AXES) :]) == list(COST_AXES)
    for model in models:
        for scale in summary.scales:
            at = table[(table.model == model) & (table.scale == scale)].set_index("task")
            mean, cost = summary.mean(model, scale), summary.cost(model, scale)
            assert at.loc["mean", "score"] == mean.value
            assert at.loc["mean", "visual_tokens"] == cost.visual_tokens
            for task in summary.tasks:
                assert at.loc[task, "score"] == summary.score(model, task, scale).value
                assert at.loc[task, "unit"] == "percent"
    pivot = table.pivot_table(index="scale", columns=["model", "task"], values="score")
    assert pivot.shape == (len(summary.scales), len(models) * (len(summary.tasks) + 1))


def test_a_new_axis_is_one_row(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joules, say: the row alone brings a column, a printed panel and an axis of the page."""
    energy = CostAxis("J to the first token", lambda cost, _: 2.0 * cost.visual_tokens, "energy")
    monkeypatch.setitem(axes.COST_AXES, "energy_j", energy)
    summary = Summary.read(run)
    assert (m3.load_run(run).energy_j == 2 * m3.load_run(run).visual_tokens).all()
    assert "energy_j" in write_csv(summary).read_text().splitlines()[0].split(",")
    assert [panel.axis for panel in panels(summary)[0]].count("energy_j") == 1
    assert {"key": "energy_j", "label": energy.label, "isMeasured": False} in page_data(summary)[
        "axes"
    ]


def test_cells_that_failed_are_rows_without_a_score(run: Path) -> None:
    text = (run / "cells.csv").read_text().splitlines()
    broken = [line.replace(",ok,", ",failed,", 1) for line in text[1:2]]
    fields = broken[0].split(",")
    value = text[0].split(",").index("value")
    fields[value] = fields[value + 1] = ""
    (run / "cells.csv").write_text("\n".join([text[0], ",".join(fields), *text[2:]]) + "\n")
    table = m3.load_run(run)
    failed = table[table.status == "failed"]
    assert set(failed.task) >= {fields[1]}
    assert all(map(math.isnan, failed.score))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cells.csv is missing; `m3 report` takes the folder"):
        m3.load_run(tmp_path)
