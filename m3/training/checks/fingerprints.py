"""Digests of what a run depends on: data and base model are refused when they changed, surroundings
are named.

in: a recipe and its opened sources; out: `fingerprints.json` in the run's folder when it begins,
and a comparison with it when it goes on. docs/training_at_scale.md says what is pinned, and what is
not.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from m3.data.fingerprint import bounded_digest, fingerprint
from m3.data.recipe import open_source
from m3.data.sample import SampleSource
from m3.files import write_text
from m3.hardware import installed_packages
from m3.training.loop.distributed import say_to_everyone, world
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.recipe import Recipe, TowerRecipe
from m3.training.recipe.resolution_recipe import ResolutionRecipe

logger = logging.getLogger(__name__)

FILE = "fingerprints.json"
SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a checkpoint beside its weights: configuration, tokenizer, processor, chat template."""
STATE = ("trainer_state.json", "model.safetensors.index.json")
"""More files of a checkpoint: how it came to be, and where its weights lie; the weights
themselves are looked at.
"""
WORDS = {
    "samples": "another number of samples",
    "records": "its records (texts, names of pictures, order)",
    "content": "samples or pictures behind the same names",
    "weights": "its weights",
}
"""Names of digests that are of no file."""
Prints = dict[str, dict[str, str]]
"""A source, a folder -> digests by what they are of."""


def check_fingerprints(
    run: RunFolder, recipe: Recipe | ResolutionRecipe, sources: Sequence[SampleSource]
) -> None:
    """Check that data and base are those that the run began with; a new run writes them down.

    Every process comes here.

    Raises:
        ValueError: what changed, in every process.
    """
    _agree(run, lambda: (_data(recipe, sources) | _models(recipe), _surroundings(recipe)))


def check_tower_fingerprints(run: RunFolder, recipe: TowerRecipe) -> None:
    """As `check_fingerprints`, for the pictures of an encoder's pre-training."""
    data_folder = Path(recipe.data)
    data_files = [data_folder / "suite.json", *sorted((data_folder / "train").glob("*.parquet"))]
    _agree(
        run,
        lambda: (
            {f"data {data_folder}": {"records": bounded_digest(data_files, data_folder)}},
            {"packages": installed_packages()},
        ),
    )


def _agree(run: RunFolder, compute: Callable[[], tuple[Prints, Prints]]) -> None:
    """The first process looks, all of them stop."""
    problem = say_to_everyone(_compare(run, *compute()) if world().is_first else None)
    if problem is not None:
        raise ValueError(problem)


def _compare(run: RunFolder, pinned: Prints, surroundings: Prints) -> str | None:
    """List what changed since the run began and must not have; what may have changed is logged."""
    fingerprint_file = run.path / FILE
    if run.newest_checkpoint() is None or not fingerprint_file.exists():
        if run.newest_checkpoint() is not None:
            logger.warning(
                "%s has checkpoints but no %s: whether data and model changed since it began "
                "cannot be told; from now on it can",
                run.path,
                FILE,
            )
        write_text(
            fingerprint_file,
            json.dumps({"pinned": pinned, "surroundings": surroundings}, indent=1) + "\n",
        )
        return None
    before = json.loads(fingerprint_file.read_text())
    around = _changes(before["surroundings"], surroundings)
    if around:
        logger.warning(
            "%s goes on, but these are not as when it began: %s", run.path, "; ".join(around)
        )
    changed = _changes(before["pinned"], pinned)
    if not changed:
        return None
    return (
        f"{run.path} would go on with other data or another base than it began with. Changed: "
        f"{'; '.join(changed)}. Put it back, "
        "or begin a new run (run=FOLDER)"
    )


def _changes(before: Prints, prints_now: Prints) -> list[str]:
    """One part for everything that differs, which says in what."""
    change_lines: list[str] = []
    for group_name in [
        *before,
        *(group_name for group_name in prints_now if group_name not in before),
    ]:
        old_prints, new_prints = before.get(group_name, {}), prints_now.get(group_name, {})
        differing = [
            print_key
            for print_key in [
                *old_prints,
                *(print_key for print_key in new_prints if print_key not in old_prints),
            ]
            if old_prints.get(print_key) != new_prints.get(print_key)
        ]
        if differing:
            texts = [_named(key, old_prints.get(key), new_prints.get(key)) for key in differing]
            change_lines.append(f"{group_name}: {', '.join(texts)}")
    return change_lines


def _named(key: str, old: str | None, new: str | None) -> str:
    """Differences in words; versions with both, which are no digests."""
    if old is None or new is None:
        return f"{WORDS.get(key, key)} ({'added' if old is None else 'gone'})"
    return (
        WORDS.get(key, key)
        if max(len(old), len(new)) > 32 or key in WORDS
        else f"{key} {old} -> {new}"
    )


def _data(recipe: Recipe | ResolutionRecipe, sources: Sequence[SampleSource]) -> Prints:
    used_sources = recipe.data.used_sources
    opened = list(zip(used_sources, sources, strict=True))
    source_names = [
        f"data.sources.{recipe.data.listed.index(data_source)} ({data_source.name})"
        for data_source in used_sources
    ]
    if isinstance(recipe, Recipe) and recipe.held_out is not None:
        opened.append((recipe.held_out.source, open_source(recipe.held_out.source)))
        source_names.append(f"held_out.source ({recipe.held_out.source.name})")
    data_prints = {
        source_name: fingerprint(data_source, samples)
        for source_name, (data_source, samples) in zip(source_names, opened, strict=True)
    }
    if recipe.data.lengths is not None:
        lengths_file = Path(recipe.data.lengths)
        data_prints[f"data.lengths ({lengths_file})"] = {
            "records": bounded_digest([lengths_file], lengths_file.parent)
        }
    return data_prints


def _models(recipe: Recipe | ResolutionRecipe) -> Prints:
    """Digests of every folder that the model is made from."""
    folders = {"model": recipe.model}
    if isinstance(recipe, Recipe) and recipe.new_model is not None:
        folders |= {
            "new_model.tokenizer": recipe.new_model.tokenizer,
            "new_model.vision_tower": recipe.new_model.vision_tower,
        }
    return {
        f"{model_key} ({model_folder})": _model(Path(model_folder))
        for model_key, model_folder in folders.items()
        if model_folder is not None and Path(model_folder).is_dir()
    }


def _model(folder: Path) -> dict[str, str]:
    settings = sorted(
        {
            settings_file
            for pattern in SETTINGS
            for settings_file in folder.glob(pattern)
            if settings_file.name not in STATE
        }
    )
    weights = sorted(folder.glob("*.safetensors"))
    file_digests = {
        settings_file.name: bounded_digest([settings_file], folder) for settings_file in settings
    }
    return file_digests | ({"weights": bounded_digest(weights, folder)} if weights else {})


def _surroundings(recipe: Recipe | ResolutionRecipe) -> Prints:
    """Things whose change changes little: versions, DeepSpeed's settings, the files of tasks."""
    surrounding_prints = {"packages": installed_packages()}
    if recipe.hardware.deepspeed is not None:
        deepspeed_file = Path(recipe.hardware.deepspeed)
        surrounding_prints["hardware.deepspeed"] = {
            str(deepspeed_file): bounded_digest([deepspeed_file], deepspeed_file.parent)
        }
    if (
        isinstance(recipe, Recipe)
        and recipe.evaluation is not None
        and Path(recipe.evaluation.include_path).is_dir()
    ):
        tasks_folder = Path(recipe.evaluation.include_path)
        task_files = sorted(
            deepspeed_file
            for deepspeed_file in tasks_folder.rglob("*")
            if deepspeed_file.suffix in (".yaml", ".py") and deepspeed_file.is_file()
        )
        surrounding_prints["evaluation.include_path"] = {
            "files of tasks": bounded_digest(task_files, tasks_folder)
        }
    return surrounding_prints
