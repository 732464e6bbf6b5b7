"""Where the data of benchmarks lie: on the hub, or in a folder of one's own (`--data-root`).

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

from m3.evaluation.results.run_folder import write_text

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
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    include = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in reversed([include] if isinstance(include, str) else include):
        merged |= read_task(path.parent / name)
    return merged | content


def included(path: Path) -> set[Path]:
    """A YAML file and all that it includes."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    include = content.get("include", [])
    found = {path}
    for name in [include] if isinstance(include, str) else include:
        found |= included((path.parent / name).resolve())
    return found


@dataclass(frozen=True)
class Data:
    """What a task reads."""

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
    places = [root / data.dataset, root / Path(data.dataset).name]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(
            f"no copy of {data.dataset} in --data-root {root}: looked for {places[0]} and "
            f"{places[1]}. `m3 data fetch-eval` "
            "makes one where the hub can be reached; elsewhere copy the hub's repository there"
        )
    if data.videos is not None and not (root / data.videos).is_dir():
        raise ValueError(
            f"no videos of {data.dataset} in {root / data.videos}: unpack the "
            "repository's archives there"
        )
    return found.resolve()


def write_overlay(folder: Path, name: str, path: Path, root: Path | None) -> Path:
    """`folder/NAME.yaml`: the harness's task at `path`, reading the copy under `root` if one is
    given.
    """
    content = read_task(path)
    overlay: dict[str, Any] = {"include": str(path.resolve()), "task": name}
    data = Data.of(content)
    if root is None and data.is_remote and "/" not in data.dataset:
        raise ValueError(
            f"{data.dataset} is not on the hub: put its files into a folder DATA/{data.dataset} "
            "and give --data-root DATA "
            f"({path.parent / 'utils.py'} says which files)"
        )
    if root is not None and data.is_remote:
        overlay["dataset_path"] = str(local_copy(data, root))
        options = content.get("dataset_kwargs") or {}
        overlay["dataset_kwargs"] = {
            key: value for key, value in options.items() if key not in DOWNLOAD_OPTIONS
        }
    target = folder / f"{name}.yaml"
    write_text(target, yaml.safe_dump(overlay, sort_keys=False))
    return target


def set_video_home(root: Path | None) -> None:
    """Tells the harness's tasks where videos are: their code reads the environment variable
    HF_HOME and nothing else.
    """
    if root is not None:
        os.environ["HF_HOME"] = str(root.resolve())
    else:
        os.environ.setdefault("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
