"""The named suites: every task exists in the installed harness or in ours, with the metric that
the suite names.
"""

from functools import cache
from pathlib import Path

import pytest
from lmms_eval.tasks import TaskManager

from m3.evaluation.harness.local_data import read_task
from m3.evaluation.suites import get_suite, known_tasks, metric_of, suites

OWN = Path(__file__).parents[2] / "lmms_eval_tasks"


@cache
def index() -> dict[str, dict]:
    return TaskManager(include_path=str(OWN)).task_index


def test_every_task_of_every_suite_exists_with_its_metric():
    seen = [(name, task) for name, suite in suites().items() for task in suite.tasks]
    assert {name: len(suite.tasks) for name, suite in suites().items()} == {
        "aria": 10,
        "llava15": 16,
        "llava_next": 12,
        "m3_tiny": 6,
        "video": 11,
        "vila10": 11,
    }
    assert len(seen) == 66
    for suite, task in seen:
        entry = index().get(task.task)
        assert entry is not None and entry["type"] == "task", f"{suite}: {task.task} is no task"
        config = read_task(Path(entry["yaml_path"]))
        metrics = [metric["metric"] for metric in config["metric_list"]]
        assert task.metric in metrics, f"{suite}: {task.task} has {metrics}"
        kwargs = config.get("dataset_kwargs") or {}
        assert ("video" in task.needs) == ("video" in kwargs or "longvideobench" in task.task), (
            task.task
        )
        assert ("server" in task.needs) == (metrics == ["submission"]), task.task


def test_names_are_looked_up_with_the_near_match():
    with pytest.raises(ValueError, match="no suite 'lava15'. Did you mean 'llava15'?"):
        get_suite("lava15")
    assert metric_of("pope") == "pope_f1_score"
    assert metric_of("tiny_one") is None
    assert len(known_tasks()) == len(
        {task.task for suite in suites().values() for task in suite.tasks}
    )
