"""The tasks of a sweep, loaded once: which the harness finds, what they depend on, what they must beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager, get_task_dict

from m3.config import near_match
from m3.evaluation.statistics import read_baselines
from m3.evaluation.store import digest_files

GENERATES = "generate_until"


@dataclass(frozen=True)
class LoadedTask:
    """One task without subtasks."""

    name: str
    task: ConfigurableTask
    is_simple: bool  # chat requests exist for generation alone
    digest: str  # of its YAML, what that includes, and the code beside it
    metric: str  # the first of its metrics
    baselines: dict[str, float]  # "chance" and "majority", if the suite ships them

    @property
    def requests(self) -> list[Instance]:
        """What the last evaluation asked, in the order of the documents."""
        instances = self.task.instances or []
        return [instance for instance in instances if isinstance(instance, Instance)]


def load_tasks(names: Sequence[str], include_path: Path | None) -> tuple[TaskManager, list[LoadedTask]]:
    """Loads tasks and the tasks of groups and tags. The harness's own 1,700 files are read only when they are needed.

    Raises:
        ValueError: a name that is no task, with the near match.
    """
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path {include_path} is no folder")
    manager = TaskManager(include_path=_as_argument(include_path), include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=_as_argument(include_path), include_defaults=True)
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(
                f"no task {name!r} in {include_path} or in lmms-eval. {near_match(name, manager.all_tasks)}"
            )
    chat = {leaf: task for name in names for leaf, task in _leaves(get_task_dict([name], manager, "chat")).items()}
    scored = [name for name, task in chat.items() if task.OUTPUT_TYPE != GENERATES]
    simple = {name: _leaves(get_task_dict([name], manager, "simple"))[name] for name in scored}
    loaded = []
    for name, task in (chat | simple).items():
        path = Path(manager.task_index[name]["yaml_path"]).resolve()
        files = {*path.parent.glob("*.py"), *_included(path)}
        found = digest_files(files, _common(files))
        metric = task.config.metric_list[0]["metric"]
        loaded.append(LoadedTask(name, task, name in simple, found, metric, _baselines(path, name)))
    return manager, loaded


def _as_argument(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _leaves(tree: dict) -> dict[str, ConfigurableTask]:
    leaves: dict[str, ConfigurableTask] = {}
    for name, value in tree.items():
        leaves.update(_leaves(value) if isinstance(value, dict) else {name: value})
    return leaves


class PlainLoader(yaml.SafeLoader):
    """Reads the harness's YAML for its `include` lines; `!function` values are left as text."""


def _as_text(_: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value)


PlainLoader.add_constructor("!function", _as_text)


def _included(path: Path) -> set[Path]:
    """A YAML file and all that it includes."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    include = content.get("include", [])
    found = {path}
    for name in [include] if isinstance(include, str) else include:
        found |= _included((path.parent / name).resolve())
    return found


def _common(files: set[Path]) -> Path:
    """The deepest folder that holds all files, so that moving the suite leaves its digest as it is."""
    parents = [set(file.parents) for file in files]
    return max(set.intersection(*parents), key=lambda folder: len(folder.parts))


def _baselines(path: Path, task: str) -> dict[str, float]:
    """The task's row of the suite's `data/baselines.json`: named as the task or as the end of its name."""
    rows = read_baselines(path.parent / "data" / "baselines.json")
    return next((row for name, row in rows.items() if task == name or task.endswith(f"_{name}")), {})
