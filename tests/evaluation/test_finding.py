"""The sentence that a report opens with, and the order of its samples."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.report.finding import finding, sufficient_budget
from m3.evaluation.report.html import page_data
from m3.evaluation.report.tables import kept_table
from m3.evaluation.results.run_folder import CostRow, write_rows
from tests.evaluation.conftest import SUITE, make_run


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return Summary.read(make_run(tmp_path_factory.mktemp("finding") / "run"))


def test_the_finding_is_that_of_the_tables(summary: Summary):
    sentence = finding(summary)
    model = summary.models[0].name
    budget = sufficient_budget(summary, model)
    largest = summary.scales[-1]
    assert budget is not None
    kept = summary.retention(model, budget if budget != largest else summary.scales[-2])
    assert kept is not None
    shown = f"{kept.value:.1f} % (95 % interval {kept.low:.1f} to {kept.high:.1f})"
    assert shown in sentence and f"mean of {len(SUITE)} tasks" in sentence
    marked = [row[0] for row in kept_table(summary).rows if "smallest that keeps 95 %" in row[3]]
    assert marked[0] == str(budget)
    if budget != largest:
        cost, most = summary.cost(model, budget), summary.cost(model, largest)
        assert cost is not None and most is not None
        share = 100 * cost.first_token_flops / most.first_token_flops
        assert f"{budget} visual token" in sentence and f"instead of {largest}," in sentence
        assert f"at {share:.0f} % of the operations to the first token" in sentence


def test_without_costs_or_intervals_the_finding_says_less(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=1)
    write_rows(run / "cost.csv", CostRow, [])
    sentence = finding(Summary.read(run))
    assert "operations" not in sentence and "interval" not in sentence
    assert sentence.startswith("m3-tiny ") or sentence.startswith("No smaller budget keeps 95 %")


def test_where_no_smaller_budget_keeps_enough_it_says_so(summary: Summary):
    """Of the two smallest budgets that were scored, the smaller one is far behind."""
    scales = summary.scales[:2]
    model = summary.models[0].name
    cells = tuple(cell for cell in summary.cells if cell.scale in scales)
    low = tuple(
        replace(cell, value=cell.value / 2)
        if cell.scale == scales[0] and cell.value is not None
        else cell
        for cell in cells
    )
    few = replace(summary, cells=low)
    assert few.scales == scales
    assert sufficient_budget(few, model) == scales[1]
    sentence = finding(few)
    assert re.match(
        rf"No smaller budget keeps 95 % of what {model} scores with {scales[1]} visual tokens; the "
        rf"next, {scales[0]} visual token, keeps \d+\.\d %",
        sentence,
    )


def test_samples_that_depend_on_the_budget_come_first(summary: Summary):
    examples = tuple(
        replace(example, doc_id=doc_id) for example in summary.examples for doc_id in range(12)
    )
    samples = page_data(replace(summary, examples=examples))["samples"]
    depends = [
        any(len({reply["right"] for reply in of.values()}) > 1 for of in sample["replies"].values())
        for sample in samples
    ]
    assert len(depends) == 12 * len(SUITE)
    assert depends.count(True) > len(SUITE) and False in depends
    assert depends == sorted(depends, reverse=True)
    assert [sample["task"] for sample in samples[: len(SUITE)]] == list(SUITE), "tasks in turn"
