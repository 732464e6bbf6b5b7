"""Location of the data of benchmarks: on the hub, or in a folder of one's own (`--data-root`).

In: names of the harness's tasks, and a folder. Out: overlays, YAML files that include the harness's
own file of each task and name the local copy of its data, so that prompts, code and metrics stay
the harness's.

    DATA/POPE/                  a copy of the hub's repository lmms-lab-encoder/POPE, or
    DATA/lmms-lab-encoder/POPE/ the same with its owner
    DATA/nextqa/NExTVideo/      the videos, where the task's `cache_dir` says, as the harness unpacks them under HF_HOME

`m3 data fetch-eval` fills such a folder (fetch.py).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m3.files import write_text

BUILDERS = ("parquet", "json", "csv", "imagefolder", "arrow", "text", "webdataset")
"""Values of `dataset_path` that name a reader: the task itself says where its files are."""
DOWNLOAD_OPTIONS = (
    "token",
    "video",
    "cache_dir",
    "force_download",
    "force_unzip",
    "create_link",
    "local_files_only",
)
"""Keys of `dataset_kwargs` that say how to download; a local copy needs none of them."""


class PlainLoader(yaml.SafeLoader):
    """Reads the harness's YAML; `!function` values are left as text."""


def _as_text(_: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value)


PlainLoader.add_constructor("!function", _as_text)


def read_task(path: Path) -> dict[str, Any]:
    """The YAML of a task with what it includes merged in, as the harness does: the first of
    several includes wins.
    """
    task_content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    include = task_content.pop("include", [])
    merged: dict[str, Any] = {}
    for include_name in reversed([include] if isinstance(include, str) else include):
        merged |= read_task(path.parent / include_name)
    return merged | task_content


def included(path: Path) -> set[Path]:
    """A YAML file and all that it includes."""
    task_content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    include = task_content.get("include", [])
    included_files = {path}
    for include_name in [include] if isinstance(include, str) else include:
        included_files |= included((path.parent / include_name).resolve())
    return included_files


@dataclass(frozen=True)
class Data:
    """Data that a task reads."""

    dataset: str  # hub id, or the name of a reader
    videos: str | None  # folder under HF_HOME, for tasks with videos

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Data":
        options = content.get("dataset_kwargs") or {}
        return cls(str(content.get("dataset_path", "")), options.get("cache_dir"))

    @property
    def is_remote(self) -> bool:
        return (
            self.dataset not in BUILDERS
            and not Path(self.dataset).is_absolute()
            and self.dataset != ""
        )


def local_copy(data: Data, root: Path) -> Path:
    """The folder under `root` that holds the data set.

    Raises:
        ValueError: neither of its two places is there, or its videos are missing; what to do is
            said.
    """
    possible_folders = [root / data.dataset, root / Path(data.dataset).name]
    local_folder = next(
        (possible_folder for possible_folder in possible_folders if possible_folder.is_dir()), None
    )
    if local_folder is None:
        raise ValueError(
            f"no copy of {data.dataset} in --data-root {root}: looked for {possible_folders[0]} and "
            f"{possible_folders[1]}. `m3 data fetch-eval` makes one where the hub can be reached; "
            "elsewhere copy the hub's repository there"
        )
    if data.videos is not None and not (root / data.videos).is_dir():
        raise ValueError(
            f"no videos of {data.dataset} in {root / data.videos}: unpack the "
            "repository's archives there"
        )
    return local_folder.resolve()


def write_overlay(folder: Path, name: str, path: Path, root: Path | None) -> Path:
    """`folder/NAME.yaml`: the harness's task at `path`, reading the copy under `root` if one is
    given.
    """
    task_content = read_task(path)
    overlay: dict[str, Any] = {"include": str(path.resolve()), "task": name}
    task_data = Data.of(task_content)
    if root is None and task_data.is_remote and "/" not in task_data.dataset:
        raise ValueError(
            f"{task_data.dataset} is not on the hub: put its files into a folder "
            f"DATA/{task_data.dataset} and give --data-root DATA ({path.parent / 'utils.py'} says "
            "which files)"
        )
    if root is not None and task_data.is_remote:
        overlay["dataset_path"] = str(local_copy(task_data, root))
        data_options = task_content.get("dataset_kwargs") or {}
        overlay["dataset_kwargs"] = {
            option_name: option_value
            for option_name, option_value in data_options.items()
            if option_name not in DOWNLOAD_OPTIONS
        }
    overlay_file = folder / f"{name}.yaml"
    write_text(overlay_file, yaml.safe_dump(overlay, sort_keys=False))
    return overlay_file


def set_video_home(root: Path | None) -> None:
    """Tells the harness's tasks where videos are: their code reads the environment variable
    HF_HOME and nothing else.
    """
    if root is not None:
        os.environ["HF_HOME"] = str(root.resolve())
    else:
        os.environ.setdefault("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
