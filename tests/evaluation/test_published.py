"""The published numbers: every file is whole, every column is a benchmark that a suite or this
list knows.
"""

from pathlib import Path

import pytest

from m3.evaluation.published import beside, published_scores, read_paper
from m3.evaluation.suites import known_tasks

# Columns that no task of a suite measures with the same prompt, split or metric; those of NEAR are
# drawn beside one.
OTHERS = {"TextVQA with OCR"}
NEAR = {"MME cognition", "MSVD-QA", "MSRVTT-QA", "TGIF-QA"}


def test_every_number_is_read_and_has_its_source():
    scores = published_scores()
    assert len(scores) == 340  # 146 of M3, 24 of LLaVA, 88 of MQT, 76 of VILA, 6 of Aria
    assert {score.paper.split(":")[0] for score in scores} == {
        "Aria",
        "Improved Baselines with Visual Instruction Tuning",
        "Matryoshka Multimodal Models",
        "Matryoshka Query Transformer for Large Vision-Language Models",
        "VILA",
    }
    assert all(score.url.startswith("https://arxiv.org/abs/") and score.table for score in scores)
    points = {"MME perception", "MME cognition"}
    assert all(0 < score.value < 100 for score in scores if score.benchmark not in points)


def test_every_column_is_a_benchmark_of_a_suite():
    benchmarks = {task.benchmark for task in known_tasks().values()}
    assert {score.benchmark for score in published_scores()} - benchmarks == OTHERS | NEAR
    assert {name for task in known_tasks().values() for name in task.near} == NEAR


def test_a_task_finds_what_is_published_for_it_per_scale():
    ladder = {score.tokens: score.value for score in beside("chartqa", ["LLaVA-NeXT-7B-M3"])}
    assert ladder == {576: 58.96, 144: 57.04, 36: 50.24, 9: 42.0, 1: 31.04}
    assert {(score.table, score.tokens_per) for score in beside("pope", ["LLaVA-1.5-7B-M3"])} == {
        ("Table 1", "image")
    }
    assert beside("a_task_of_my_own") == []
    judged = beside("msvd_qa", ["LLaVA-NeXT-7B-M3"])
    assert {score.label for score in judged} == {"LLaVA-NeXT-7B-M3 (judged)"}
    assert {score.tokens: score.value for score in judged}[45] == 75.8


def test_a_row_of_wrong_length_is_refused(tmp_path: Path):
    file = tmp_path / "one.yaml"
    file.write_text(
        "paper: P\nurl: u\ntables:\n  - table: Table 1\n    tokens_per: image\n    benchmarks: [A, "
        "B]\n"
        "    rows:\n      - {model: M, tokens: 9, scores: [1.0]}\n"
    )
    with pytest.raises(
        ValueError, match="Table 1, M at 9 tokens has 1 scores for 2 benchmarks: A, B"
    ):
        read_paper(file)
