"""Named suites: which tasks of the harness a suite has, and what each needs.

In: `suites/*.yaml` (package data). Out: `Suite`s. A name of a suite is what `m3 sweep --suite`
takes; a task is a name of lmms-eval or of a task of ours in `lmms_eval_tasks/`.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from m3.config import load, near_match

Need = Literal["judge", "server", "video"]
"""judge: a language model scores the answers, which costs money (judge.py). server: the labels are
hidden; a submission file is written, and `m3 submit` collects it. video: the visuals are videos,
read as frames."""


@dataclass(frozen=True)
class SuiteTask:
    task: str
    benchmark: str  # as papers name it, split included; what published/*.yaml calls its columns
    metric: str  # the harness's metric that tables and charts show
    needs: list[Need] = field(default_factory=list)
    unit: Literal["share", "points"] = (
        "share"  # points: a sum of some unit, which no mean takes in, however small it is
    )
    # benchmarks of the same data, scored otherwise -> in which way
    near: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    about: str
    tasks: list[SuiteTask]


@cache
def suites() -> dict[str, Suite]:
    """Every suite by name."""
    suites_folder = Path(str(files("m3.evaluation").joinpath("suites")))
    return {
        suite_file.stem: load(suite_file, Suite)
        for suite_file in sorted(suites_folder.glob("*.yaml"))
    }


def get_suite(suite_name: str) -> Suite:
    """The suite called `name`; a `ValueError` gives the near match."""
    if suite_name not in suites():
        raise ValueError(f"no suite {suite_name!r}. {near_match(suite_name, suites())}")
    return suites()[suite_name]


@cache
def known_tasks() -> dict[str, SuiteTask]:
    """Every task of every suite by its name; a task is described alike wherever it stands."""
    suite_tasks: dict[str, SuiteTask] = {}
    for suite_name, suite in suites().items():
        for task in suite.tasks:
            if suite_tasks.setdefault(task.task, task) != task:
                raise ValueError(
                    f"suite {suite_name} describes {task.task} otherwise than another suite does"
                )
    return suite_tasks


def metric_of(task: str) -> str | None:
    """The metric that tables show for a task; None where no suite has it (then it is the task's
    first).
    """
    suite_task = known_tasks().get(task)
    return None if suite_task is None else suite_task.metric


def unit_of(task: str) -> str:
    """Unit of a task's metric; a share (of one, or of a hundred) where no suite says otherwise."""
    suite_task = known_tasks().get(task)
    return "share" if suite_task is None else suite_task.unit
