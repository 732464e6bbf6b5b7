"""The report of a run folder: table, CSV, chart and a page that needs nothing else."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from m3.evaluation import report
from m3.evaluation.run_folder import CellRow, LatencyRow, read_rows, write_rows
from m3.evaluation.summary import Summary
from tests.evaluation.conftest import FAMILIES, SWEPT, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    assert report.main([str(folder)]) == 0
    return folder


class Links(HTMLParser):
    """Every address that a page would fetch or go to, and how often each tag opens and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[tag] = self.open.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] = self.open.get(tag, 0) - 1


def test_page_is_self_contained(run: Path):
    page = (run / "report.html").read_text()
    parser = Links()
    parser.feed(page)
    assert len(parser.links) > 20
    assert [link for link in parser.links if not link.startswith(("#", "data:image/png;base64,"))] == []
    assert "url(http" not in page
    assert "@import" not in page
    unclosed = {tag: count for tag, count in parser.open.items() if count and tag not in ("meta", "br")}
    assert unclosed == {}


def test_page_shows_every_scale_family_and_answer(run: Path):
    page = (run / "report.html").read_text()
    for family in FAMILIES:
        assert f"What &lt;is&gt; this {family}?" in page  # escaped: questions are data
    assert page.count("<figure>") == len(FAMILIES) * len(SWEPT)
    assert page.count('class="right"') + page.count('class="wrong"') == 2 * len(FAMILIES) * len(SWEPT)
    assert 'wrong <b>"answer"</b>' not in page
    assert "wrong &lt;b&gt;" in page
    assert page.count("<svg") == len(FAMILIES) * len(SWEPT) + 3 + len(FAMILIES)


def test_table_and_csv_agree(run: Path, capsys: pytest.CaptureFixture[str]):
    report.main([str(run)])
    printed = capsys.readouterr().out
    with (run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], int(row["scale"])) for row in rows] == [
        (m, s) for m in ("m3-tiny", "m3-tiny-base") for s in SWEPT
    ]
    for row in rows:
        mean = sum(float(row[family]) for family in FAMILIES) / len(FAMILIES)
        assert float(row["mean"]) == pytest.approx(mean, abs=1e-3)
        assert f"{float(row['mean']):.1f}±{float(row['mean_stderr']):.1f}" in printed
    assert [row["trained_at_scale"] for row in rows] == ["True"] * 4 + ["False"] * 3 + ["True"]
    behind = {int(row["scale"]): row for row in rows if row["model"] == "m3-tiny-base"}
    assert float(behind[1]["behind_first_low"]) > 0  # the trained model is ahead at one token, beyond doubt
    assert float(behind[1]["behind_first"]) == pytest.approx(
        float(rows[0]["mean"]) - float(behind[1]["mean"]), abs=1e-3
    )
    assert re.search(r"chance +10\.0 +10\.0 +10\.0 +10\.0 +10\.0", printed)
    assert re.search(r"1\* ", printed)


def test_chart_is_a_picture_of_some_size(run: Path):
    with Image.open(run / "accuracy_vs_cost.png") as image:
        assert image.width >= 1200
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours


def test_two_reports_of_one_run_are_equal(run: Path):
    before = (run / "summary.csv").read_bytes()
    report.main([str(run)])
    assert (run / "summary.csv").read_bytes() == before


def test_failed_cells_are_shown(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4)
    cells = read_rows(run / "cells.csv", CellRow)
    cells[0] = replace(cells[0], status="failed", value=None, stderr=None, error="KeyError: no such metric")
    write_rows(run / "cells.csv", CellRow, cells)
    summary = Summary.read(run)
    assert "failed" in report.table(summary)
    assert "KeyError: no such metric" in report.page(summary)
    assert summary.mean("m3-tiny", 1) is None


def test_unmeasured_latency_leaves_its_panel_out(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4)
    write_rows(run / "latency.csv", LatencyRow, [])
    assert report.main([str(run)]) == 0
    assert "by measured latency" not in (run / "report.html").read_text()


def test_not_a_run_folder(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"cells\.csv is missing; `m3 report` takes the folder that `m3 sweep --out` wrote"
    ):
        report.main([str(tmp_path)])


def test_grid_lines_part_the_image_into_the_scale():
    from m3.evaluation.run_folder import ModelRow

    square = ModelRow("m", "m", "w", [144], [12, 12], "grid_pool", 1)
    for scale in (4, 9, 36, 144):
        lines = report.grid_lines(square, scale)
        upright = sum(x1 == x2 for x1, _, x2, _ in lines)
        assert (upright + 1) ** 2 == scale == (len(lines) - upright + 1) ** 2
    assert report.grid_lines(square, 1) == []
    wide = ModelRow("m", "m", "w", [32], [4, 8], "grid_pool", 1)
    assert len(report.grid_lines(wide, 8)) == 3 + 1
    assert report.grid_lines(ModelRow("m", "m", "w", [4], [9], "query_prefix", 1), 4) == []
