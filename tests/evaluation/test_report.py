"""The report of a run folder: table, CSV, figures, LaTeX, and a page that needs nothing else."""

import csv
import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from m3.evaluation.analysis.summary import Summary
from m3.evaluation.published import PublishedScore, published_scores
from m3.evaluation.report import command as report
from m3.evaluation.report import cost_tables
from m3.evaluation.report import tables as report_tables
from m3.evaluation.report.charts import accuracy_figure, draw, panels, place, save
from m3.evaluation.report.html import page_data
from m3.evaluation.results.run_folder import CellRow, CostRow, LatencyRow, read_rows, write_rows
from m3.evaluation.suites import known_tasks
from tests.evaluation.conftest import FAMILIES, SUITE, SWEPT, make_run

BY_TOKENS = "visual tokens in the prompt (mean)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    assert report.main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def again(run: Path) -> tuple[dict[str, bytes], str]:
    """The report once more: the files that were there before it, and what it printed."""
    files = ["summary.csv", "report.html", "figures/oracle.svg", "tables/oracle.tex"]
    before = {file: (run / file).read_bytes() for file in files}
    with redirect_stdout(io.StringIO()) as printed:
        assert report.main([str(run), "--formats", "svg"]) == 0
    return before, printed.getvalue()


class Links(HTMLParser):
    """Every address that a page would fetch or go to, every id, and how often each tag opens and
    closes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: dict[str, int] = {}
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.open[tag] = self.open.get(tag, 0) + 1
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] = self.open.get(tag, 0) - 1


def page_json(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_page_is_self_contained(run: Path):
    html = (run / "report.html").read_text()
    parser = Links()
    parser.feed(html)
    places = [link for link in parser.links if link.startswith("#")]
    assert len(places) > 5 and len(parser.ids) == len(set(parser.ids))
    assert [place for place in places if place[1:] not in parser.ids] == []
    assert sorted(parser.links) == sorted(places)  # images are in the JSON
    assert (
        re.findall(
            r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)[^\s\"<)]*\.(?:js|css|png)", html
        )
        == []
    )
    unclosed = {
        tag: count for tag, count in parser.open.items() if count and tag not in ("meta", "input")
    }
    assert unclosed == {}


def test_page_has_every_scale_family_and_answer(run: Path):
    html = (run / "report.html").read_text()
    data = page_json(html)
    assert [task["name"] for task in data["tasks"]] == list(FAMILIES)
    assert data["scales"] == list(SWEPT)
    assert len(data["samples"]) == len(SUITE)
    for sample in data["samples"]:
        assert sample["question"].startswith("What <is> this suite_")
        assert sample["image"].startswith("data:image/png;base64,")
        assert {
            name: sorted(map(int, of_scale)) for name, of_scale in sample["replies"].items()
        } == {"m3-tiny": list(SWEPT), "m3-tiny-base": list(SWEPT)}
    assert "<is>" not in html  # data cannot become markup
    assert 'wrong <b>"answer"</b>' not in html


def test_page_agrees_with_the_summary(run: Path):
    data, summary = page_json((run / "report.html").read_text()), Summary.read(run)
    for model in summary.models:
        for task in summary.tasks:
            for scale in summary.scales:
                score = summary.score(model.name, task, scale)
                assert score is not None
                assert data["scores"][model.name][task][str(scale)] == pytest.approx(
                    [score.value, score.stderr]
                )
            oracle = summary.oracle(model.name, task)
            assert oracle is not None
            assert sum(count for _, count in data["needs"][model.name][task]) == oracle.n == 40


def test_table_and_csv_agree(run: Path, again: tuple[dict[str, bytes], str]):
    _, printed = again
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
    # the trained model is ahead at one token, beyond doubt
    assert float(behind[1]["behind_first_low"]) > 0
    assert float(behind[1]["behind_first"]) == pytest.approx(
        float(rows[0]["mean"]) - float(behind[1]["mean"]), abs=1e-3
    )
    assert re.search(r"chance +10\.0 +10\.0 +10\.0 +10\.0 +10\.0", printed)
    assert re.search(r"1\* ", printed)


def test_figures_for_print(run: Path):
    with Image.open(run / "accuracy_vs_cost.png") as image:
        assert image.width >= 1200
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {
        "accuracy_vs_cost.svg", "accuracy_vs_cost.pdf", "oracle.svg", "oracle.pdf", "oracle.png", "latency.svg", "latency.pdf",
        "latency.png", "experts.svg", "experts.pdf", "experts.png",
    }  # fmt: skip
    assert (run / "figures" / "oracle.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (run / "figures" / "oracle.svg").read_text()


def test_two_reports_of_one_run_are_equal(run: Path, again: tuple[dict[str, bytes], str]):
    before, _ = again
    assert {file: (run / file).read_bytes() for file in before} == before


def test_estimate_stands_beside_the_measurement_under_its_name(run: Path):
    table = cost_tables.latency_table(Summary.read(run), "A100")
    assert table.header[-2:] == ["ESTIMATE first, ms", "ESTIMATE token, ms"]
    assert "Estimate: roofline in 16 bit of A100 SXM 80GB" in table.note
    assert "nothing was run on it" in table.note
    assert len(table.rows) == 2 * 2 * len(SWEPT)
    assert {tuple(row[-2:]) for row in table.rows[len(SWEPT) : 2 * len(SWEPT)]} == {
        ("–", "–")
    }  # of a batch of one alone
    assert all(
        "measured on CPU (x86_64), 2 threads, float32" in block for block in table.blocks.values()
    )


DRAWN = (
    "Matryoshka Multimodal Models",
    "Matryoshka Query Transformer for Large Vision-Language Models",
)
SERVED = ("vqav2_test", "vizwiz_vqa_test")


def test_every_number_of_m3_and_mqt_is_drawn_beside_a_run(tmp_path: Path):
    """M3's Tables 1, 2 and 3 (videos) and MQT's figure, per number of tokens; what a server
    scores is in the table alone.
    """
    scores = [score for score in published_scores() if score.paper in DRAWN]
    assert len(scores) == 146 + 88
    columns = {score.benchmark for score in scores}
    tasks = [
        t.task
        for t in known_tasks().values()
        if columns & {t.benchmark, *t.near} and t.task not in SERVED
    ]
    run = make_run(tmp_path / "run", documents=2, tasks=tasks)
    for task in SERVED:
        (run / "submissions" / "m3-tiny" / f"{task}@9" / "file.json").mkdir(parents=True)
    assert report.main([str(run), "--formats"]) == 0
    assert not (run / "figures").exists()
    data = page_json((run / "report.html").read_text())
    on_page = {
        (row["model"].split(" (")[0], row["tokens"], row["value"], row["table"])
        for row in data["published"]
    }
    summary, known = Summary.read(run), known_tasks()
    (chart,) = save(accuracy_figure(summary), tmp_path / "accuracy_vs_cost", ("svg",))
    drawn = chart.read_text()
    table = (run / "tables" / "published.md").read_text()
    missing = [
        score
        for score in scores
        if (score.model, score.tokens, score.value, score.table) not in on_page
    ]
    assert {score.benchmark for score in missing} == {"VQAv2 test-dev", "VizWiz test"}
    for score in scores:
        task = next(name for name, t in known.items() if score.benchmark in {t.benchmark, *t.near})
        name = f"{task} (at its server)" if task in SERVED else summary.label(task)
        assert re.search(
            rf"\| {re.escape(name)}, {score.tokens} \|.*\b{score.value:.1f}\b", table
        ), score
        assert f"published: {score.model}" in drawn
    # MSVD-QA and MSRVTT-QA: another metric than ours
    assert "published: LLaVA-NeXT-7B-M3 (judged)" in drawn
    assert "published: MQT-LLaVA-7B (cognition)" in drawn
    # our own stand beside
    assert all(summary.score("m3-tiny", task, 9) is not None for task in tasks)
    found = {(row["model"], row["task"], row["tokens"]): row["value"] for row in data["published"]}
    assert found["LLaVA-1.5-7B-M3", "gqa", 36] == 60.3
    assert found["LLaVA-NeXT-7B-M3", "egoschema_subset", 45] == 38.8
    assert found["MQT-LLaVA-7B", "pope", 2] == 74.5


def test_failed_cells_are_shown(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4)
    cells = read_rows(run / "cells.csv", CellRow)
    cells[0] = replace(
        cells[0], status="failed", value=None, stderr=None, error="KeyError: no such metric"
    )
    write_rows(run / "cells.csv", CellRow, cells)
    assert report.main([str(run), "--formats", "svg"]) == 0
    summary = Summary.read(run)
    assert report_tables.scores_table(summary).rows[0][1] == "failed"
    assert "KeyError: no such metric" in (run / "report.html").read_text()
    assert summary.mean("m3-tiny", 1) is None


def test_a_task_is_drawn_against_the_cost_of_its_own_prompts(tmp_path: Path):
    """One task of two pictures a prompt among others of one: its chart alone moves."""
    run = make_run(tmp_path / "run", documents=4, tasks=("a_one", "a_pairs"))
    before = page_data(Summary.read(run))
    assert before["taskCosts"] is None and {
        panel.x_label for panel in panels(Summary.read(run))[1]
    } == {BY_TOKENS}
    costs = read_rows(run / "cost.csv", CostRow)
    pairs = [replace(c, task="a_pairs", prompts=1, visual_tokens=2 * c.scale) for c in costs]
    write_rows(
        run / "cost.csv",
        CostRow,
        [*costs, *(replace(c, task="a_one", prompts=3) for c in costs), *pairs],
    )
    summary = Summary.read(run)
    data = page_data(summary)
    assert data["costs"] == before["costs"]
    assert [data["taskCosts"]["m3-tiny"][task][36]["visual_tokens"] for task in summary.tasks] == [
        36,
        72,
    ]
    places = {}
    for panel in panels(summary)[1]:
        axes = Figure().subplots()
        draw(axes, panel, summary)
        places[panel.task] = sorted(
            {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
        )
    assert places == {"a_one": [1, 4, 9, 36], "a_pairs": [2, 8, 18, 72]}


@pytest.mark.parametrize(
    ("tokens", "per", "ticks", "expected"),
    [
        (9, "image", {1.0: 1, 9.0: 9}, 9.0),
        (16, "image", {1.0: 1, 9.0: 9}, 16.0),  # not ours, but counted alike
        (9, "tile", {5.0: 1, 51.0: 9}, 51.0),  # the same scale: the same pictures in as many tiles
        (16, "tile", {5.0: 1, 51.0: 9}, None),  # nobody knows how many tokens that is
        (45, "video", {8.0: 1, 72.0: 9}, 45.0),
        (9, "video", {8.0: 1, 72.0: 9}, 9.0),  # of the whole video: not our 72
    ],
)
def test_published_scores_stand_where_they_cost_what_ours_do(
    tokens: int, per: str, ticks: dict, expected: float | None
):
    score = PublishedScore("m", "b", 50.0, tokens, per, "paper", "url", "table", "")
    assert place(score, ticks) == expected


def test_unmeasured_latency_leaves_its_panel_and_table_out(tmp_path: Path):
    run = make_run(tmp_path / "run", documents=4)
    write_rows(run / "latency.csv", LatencyRow, [])
    assert report.main([str(run), "--formats", "svg"]) == 0
    assert "by measured latency" not in (run / "figures" / "accuracy_vs_cost.svg").read_text()
    assert not (run / "tables" / "latency.md").exists()
    assert not (run / "figures" / "latency.svg").exists()


def test_not_a_run_folder(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"cells\.csv is missing; `m3 report` takes the folder that `m3 sweep "
        r"--out` wrote",
    ):
        report.main([str(tmp_path)])
