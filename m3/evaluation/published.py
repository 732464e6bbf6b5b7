"""Scores that papers report, as data: so that a report can show theirs beside ours, per scale.

In: `published/*.yaml`, one file per paper: its tables, the benchmarks in the order of the columns,
a row per model and number of visual tokens. Out: `PublishedScore`s. A benchmark is named as in the
suites (suites/*.yaml), which say what task of the harness measures it; `beside(task)` gives what is
published for a task of a sweep. Scores are in the papers' unit: per cent, or points where the
benchmark counts points (MME).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from m3.config import load
from m3.evaluation.suites import known_tasks


@dataclass(frozen=True)
class PublishedScore:
    """One number of one table."""

    model: str
    benchmark: str
    value: float
    # visual tokens; None where they differ from image to image, or are not stated
    tokens: int | None
    # what `tokens` counts: an image, a tile of an image (per grid of LLaVA-NeXT), or a whole video
    tokens_per: str
    paper: str
    url: str
    table: str
    note: str
    differs: str = ""  # beside a task: in which way the paper scores it otherwise

    @property
    def label(self) -> str:
        """The model, and how its score is another one than the task's."""
        return f"{self.model} ({self.differs})" if self.differs else self.model


@dataclass(frozen=True)
class _Row:
    model: str
    tokens: int | None
    scores: list[float]


@dataclass(frozen=True)
class _Table:
    table: str
    tokens_per: Literal["image", "tile", "video"]
    benchmarks: list[str]
    rows: list[_Row]
    note: str = ""


@dataclass(frozen=True)
class _Paper:
    paper: str
    url: str
    tables: list[_Table]


@cache
def published_scores() -> tuple[PublishedScore, ...]:
    """Every number of every file, in the order of the files' names and of their rows."""
    papers_folder = Path(str(files("m3.evaluation").joinpath("published")))
    return tuple(
        score
        for paper_file in sorted(papers_folder.glob("*.yaml"))
        for score in read_paper(paper_file)
    )


def read_paper(path: Path) -> list[PublishedScore]:
    """The numbers of one file.

    Raises:
        ValueError: an unknown key, or a row with more or fewer scores than the table has
            benchmarks.
    """
    paper, paper_scores = load(path, _Paper), []
    for table in paper.tables:
        for table_row in table.rows:
            if len(table_row.scores) != len(table.benchmarks):
                raise ValueError(
                    f"{path}: {table.table}, {table_row.model} at {table_row.tokens} tokens has "
                    f"{len(table_row.scores)} scores for "
                    f"{len(table.benchmarks)} benchmarks: {', '.join(table.benchmarks)}"
                )
            paper_scores += [
                PublishedScore(
                    table_row.model,
                    benchmark_name,
                    reported_value,
                    table_row.tokens,
                    table.tokens_per,
                    paper.paper,
                    paper.url,
                    table.table,
                    table.note,
                )
                for benchmark_name, reported_value in zip(
                    table.benchmarks, table_row.scores, strict=True
                )
            ]
    return paper_scores


def beside(task: str, models: Sequence[str] | None = None) -> list[PublishedScore]:
    """Published scores for a task of the harness (`pope`), of `models` or of all; empty where there
    are none.

    Scores of the same data by another metric come last and say so (`differs`).
    """
    suite_task = known_tasks().get(task)
    if suite_task is None:
        return []
    return [
        replace(score, differs=differs)
        for benchmark, differs in {suite_task.benchmark: "", **suite_task.near}.items()
        for score in published_scores()
        if score.benchmark == benchmark and (models is None or score.model in models)
    ]
