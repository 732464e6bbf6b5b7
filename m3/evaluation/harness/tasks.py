"""The tasks of a sweep, loaded once: which the harness finds, what they depend on, what they must
beat.

In: names of tasks, groups and tags; a folder with tasks of one's own; a folder with local copies of
data. Out: `LoadedTask`s and the manager that the harness runs them with. A task that cannot be
loaded is a `BrokenTask`: the others go on.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager, get_task_dict

from m3.digest import digest_files
from m3.evaluation.harness.local_data import (
    Data,
    included,
    read_task,
    set_video_home,
    write_overlay,
)
from m3.evaluation.statistics import read_baselines
from m3.evaluation.suites import metric_of

logger = logging.getLogger(__name__)

TASKS_FOLDER = "lmms_eval_tasks"
"""Folder of tasks in a checkout of the code."""
GENERATES = "generate_until"
FOREIGN = (Exception, SystemExit)
"""What the code of a task may raise.

Some call sys.exit where a file is missing; that must not end the sweep.
"""
EXTRAS: Mapping[str, str] = dict.fromkeys(("cv2", "decord", "Levenshtein"), "benchmarks")
"""Packages that tasks of the suites import by themselves, and the extra that has them."""


@dataclass(frozen=True)
class LoadedTask:
    """One task without subtasks."""

    name: str
    task: ConfigurableTask
    is_simple: bool  # chat requests exist for generation alone
    digest: str  # of its YAML, what that includes, and the code beside these
    metric: str  # the one that tables show: as the suite says, or else the first
    baselines: dict[str, float]  # "chance" and "majority", if the suite ships them

    def higher_is_better(self, metric: str) -> bool | None:
        """As the task's YAML or the harness's registry says; None where neither does."""
        return self.task.higher_is_better().get(metric)

    @property
    def requests(self) -> list[Instance]:
        """Requests of the last evaluation, in the order of the documents."""
        instances = self.task.instances or []
        return [instance for instance in instances if isinstance(instance, Instance)]


@dataclass(frozen=True)
class BrokenTask:
    """A task that could not be loaded, and why."""

    name: str
    metric: str
    error: BaseException


@dataclass(frozen=True)
class TaskFile:
    """Path of a task's YAML."""

    name: str
    path: Path
    is_ours: bool  # from the include path, not of the harness


def load_tasks(
    names: Sequence[str], include_path: Path | None, overlays: Path, data_root: Path | None = None
) -> tuple[TaskManager, list[LoadedTask], list[BrokenTask]]:
    """Loads tasks and the tasks of groups and tags.

    The harness's own 1,700 files are read only when they are needed.

    `overlays`: a folder to write to, what the harness is told of its own tasks. `data_root`: local
        copies of data sets.

    Raises:
        ValueError: a name that is no task, with the near match; a data root that is no folder.
    """
    if data_root is not None and not data_root.is_dir():
        raise ValueError(f"--data-root {data_root} is no folder")
    set_video_home(data_root)
    loaded: list[LoadedTask] = []
    broken: list[BrokenTask] = []
    include_paths = [] if include_path is None else [str(include_path)]
    good: list[TaskFile] = []
    for task_file in find_tasks(names, include_path):
        if not task_file.is_ours or Data.of(read_task(task_file.path)).is_remote:
            try:
                write_overlay(overlays, task_file.name, task_file.path, data_root)
            except ValueError as error:
                broken.append(BrokenTask(task_file.name, metric_of(task_file.name) or "", error))
                continue
        good.append(task_file)
    if overlays.is_dir():
        # the harness takes the first of tasks that have the same name
        include_paths.insert(0, str(overlays))
    manager = TaskManager(include_path=include_paths, include_defaults=False)
    for task_file in good:
        try:
            loaded.append(_load(task_file, manager))
        except FOREIGN as error:  # a task is foreign code and foreign data: it fails alone
            logger.exception("task %s cannot be loaded", task_file.name)
            broken.append(
                BrokenTask(task_file.name, metric_of(task_file.name) or "", _explained(error))
            )
    return manager, loaded, broken


def _explained(error: BaseException) -> BaseException:
    """A missing package with the extra that has it; a task without documents, whose first one
    the harness asks for.
    """
    # the words of datasets
    if isinstance(error, IndexError) and "out of bounds for size 0" in str(error):
        return ValueError(
            "the task has no documents: its split is empty, or its process_docs leaves none"
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None and error.name in EXTRAS:
        return ValueError(
            f"the task needs the package {error.name}: pip install -e '.[{EXTRAS[error.name]}]'"
        )
    return error


def tasks_folder(include_path: Path) -> Path | None:
    """The folder with tasks of one's own; None where the default one is not there, as outside a
    checkout of the code.

    Raises:
        ValueError: another one is not there.
    """
    if include_path.is_dir():
        return include_path
    if include_path.exists() or str(include_path) != TASKS_FOLDER:
        raise ValueError(
            f"--include-path {include_path} is no folder; give one with tasks as "
            "YAML, or leave it out"
        )
    return None


def find_tasks(names: Sequence[str], include_path: Path | None) -> list[TaskFile]:
    """The files of all tasks that the names stand for, each once, in the order of the names."""
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path {include_path} is no folder")
    own_manager = TaskManager(
        include_path=None if include_path is None else str(include_path), include_defaults=False
    )
    task_files: dict[str, TaskFile] = {}
    for task_name in names:
        is_ours = task_name in own_manager.task_index
        index = own_manager.task_index if is_ours else upstream().task_index
        if task_name not in index:
            known_names = sorted({*own_manager.task_index, *index})
            include_note = (
                f"in lmms-eval ({TASKS_FOLDER} is not here)"
                if include_path is None
                else f"in {include_path} or in lmms-eval"
            )
            near = get_close_matches(task_name, known_names, n=3)
            hint = (
                f"Did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"It has {len(known_names):,}; no name is near."
            )
            raise ValueError(f"no task {task_name!r} {include_note}. {hint}")
        for leaf in _leaf_names(task_name, index):
            task_source = own_manager.task_index if leaf in own_manager.task_index else index
            task_path = Path(task_source[leaf]["yaml_path"]).resolve()
            task_files.setdefault(
                leaf, TaskFile(leaf, task_path, task_source is own_manager.task_index)
            )
    return list(task_files.values())


@cache
def upstream() -> TaskManager:
    """The harness's own tasks; reading their YAML takes some seconds."""
    return TaskManager(include_defaults=True)


def _leaf_names(name: str, index: dict, group: str = "") -> list[str]:
    if name not in index:
        raise ValueError(
            f"the group {group} names {name}, but there is no such task; name the others of its "
            "tasks one by one"
        )
    index_entry = index[name]
    if index_entry["type"] in ("task", "python_task"):
        return [name]
    listed = (
        index_entry["task"]
        if index_entry["task"] != -1
        else read_task(Path(index_entry["yaml_path"]))["task"]
    )
    return [leaf for member in _members(listed) for leaf in _leaf_names(member, index, name)]


def _members(listed: Sequence[str | Mapping[str, Any]]) -> Iterator[str]:
    """The names in a group: bare, with settings of their own, or in a group that is written
    where it is named.
    """
    for member in listed:
        if isinstance(member, str):
            yield member
        elif isinstance(member["task"], str):
            yield member["task"]
        else:
            yield from _members(member["task"])


def _load(file: TaskFile, manager: TaskManager) -> LoadedTask:
    task = _task(file.name, manager, "chat")
    is_simple = task.OUTPUT_TYPE != GENERATES
    if is_simple:
        task = _task(file.name, manager, "simple")
    if task.config.num_fewshot and not is_simple:
        raise ValueError(
            f"the task puts {task.config.num_fewshot} examples before each question (num_fewshot), "
            "which lmms-eval's tasks of "
            "chat messages cannot: set num_fewshot: 0 in a task of your own that includes it"
        )
    yamls = included(file.path)
    task_files = yamls | {code for yaml_file in yamls for code in yaml_file.parent.glob("*.py")}
    metric = metric_of(file.name) or task.config.metric_list[0]["metric"]
    task_digest = digest_files(task_files, _common(task_files))
    return LoadedTask(
        file.name, task, is_simple, task_digest, metric, _baselines(file.path, file.name)
    )


def _task(name: str, manager: TaskManager, kind: Literal["chat", "simple"]) -> ConfigurableTask:
    loaded = get_task_dict([name], manager, kind)
    assert list(loaded) == [name] and isinstance(loaded[name], ConfigurableTask), loaded
    return loaded[name]


def _common(files: set[Path]) -> Path:
    """The deepest folder that holds all files, so that moving the suite leaves its digest as it
    is.
    """
    parents = [set(task_file.parents) for task_file in files]
    return max(set.intersection(*parents), key=lambda common_folder: len(common_folder.parts))


def _baselines(path: Path, task: str) -> dict[str, float]:
    """The task's row of the suite's `data/baselines.json`: named as the task or as the end of
    its name.
    """
    baseline_rows = read_baselines(path.parent / "data" / "baselines.json")
    return next(
        (
            baseline_row
            for baseline_task, baseline_row in baseline_rows.items()
            if task == baseline_task or task.endswith(f"_{baseline_task}")
        ),
        {},
    )
