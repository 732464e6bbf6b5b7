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

from m3.data.fingerprint import digest_files, fingerprint
from m3.data.recipe import open_source
from m3.data.sample import SampleSource
from m3.training.distributed import say_to_everyone, world
from m3.training.recipe import Recipe, TowerRecipe
from m3.training.run_folder import RunFolder, installed_packages

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


def check_fingerprints(run: RunFolder, recipe: Recipe, sources: Sequence[SampleSource]) -> None:
    """Check that data and base are those that the run began with; a new run writes them down.

    Every process comes here.

    Raises:
        ValueError: what changed, in every process.
    """
    _agree(run, lambda: (_data(recipe, sources) | _models(recipe), _surroundings(recipe)))


def check_tower_fingerprints(run: RunFolder, recipe: TowerRecipe) -> None:
    """As `check_fingerprints`, for the pictures of an encoder's pre-training."""
    folder = Path(recipe.data)
    files = [folder / "suite.json", *sorted((folder / "train").glob("*.parquet"))]
    _agree(
        run,
        lambda: (
            {f"data {folder}": {"records": digest_files(files, folder)}},
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
    path = run.path / FILE
    if run.newest_checkpoint() is None or not path.exists():
        if run.newest_checkpoint() is not None:
            logger.warning(
                "%s was begun before runs kept fingerprints of data and model: whether they "
                "changed since cannot be told; from "
                "now on it can",
                run.path,
            )
        run.write_text(
            FILE, json.dumps({"pinned": pinned, "surroundings": surroundings}, indent=1) + "\n"
        )
        return None
    before = json.loads(path.read_text())
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


def _changes(before: Prints, now: Prints) -> list[str]:
    """One part for everything that differs, which says in what."""
    found: list[str] = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name, {}), now.get(name, {})
        differing = [
            key
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key) != new.get(key)
        ]
        if differing:
            found.append(
                f"{name}: {', '.join(_named(key, old.get(key), new.get(key)) for key in differing)}"
            )
    return found


def _named(key: str, old: str | None, new: str | None) -> str:
    """What differs in words; versions with both, which are no digests."""
    if old is None or new is None:
        return f"{WORDS.get(key, key)} ({'added' if old is None else 'gone'})"
    return (
        WORDS.get(key, key)
        if max(len(old), len(new)) > 32 or key in WORDS
        else f"{key} {old} -> {new}"
    )


def _data(recipe: Recipe, sources: Sequence[SampleSource]) -> Prints:
    used_sources = recipe.data.used_sources
    opened = list(zip(used_sources, sources, strict=True))
    names = [
        f"data.sources.{recipe.data.listed.index(source)} ({source.name})"
        for source in used_sources
    ]
    if recipe.held_out is not None:
        opened.append((recipe.held_out.source, open_source(recipe.held_out.source)))
        names.append(f"held_out.source ({recipe.held_out.source.name})")
    found = {
        name: fingerprint(source, samples)
        for name, (source, samples) in zip(names, opened, strict=True)
    }
    if recipe.data.lengths is not None:
        lengths = Path(recipe.data.lengths)
        found[f"data.lengths ({lengths})"] = {"records": digest_files([lengths], lengths.parent)}
    return found


def _models(recipe: Recipe) -> Prints:
    """Of every folder that the model is made from."""
    folders = {"model": recipe.model}
    if recipe.new_model is not None:
        folders |= {
            "new_model.tokenizer": recipe.new_model.tokenizer,
            "new_model.vision_tower": recipe.new_model.vision_tower,
        }
    return {
        f"{key} ({path})": _model(Path(path))
        for key, path in folders.items()
        if path is not None and Path(path).is_dir()
    }


def _model(folder: Path) -> dict[str, str]:
    settings = sorted(
        {file for pattern in SETTINGS for file in folder.glob(pattern) if file.name not in STATE}
    )
    weights = sorted(folder.glob("*.safetensors"))
    found = {file.name: digest_files([file], folder) for file in settings}
    return found | ({"weights": digest_files(weights, folder)} if weights else {})


def _surroundings(recipe: Recipe) -> Prints:
    """What may change and change little: versions, DeepSpeed's settings, the files of tasks."""
    found = {"packages": installed_packages()}
    if recipe.hardware.deepspeed is not None:
        file = Path(recipe.hardware.deepspeed)
        found["hardware.deepspeed"] = {str(file): digest_files([file], file.parent)}
    if recipe.evaluation is not None and Path(recipe.evaluation.include_path).is_dir():
        folder = Path(recipe.evaluation.include_path)
        files = sorted(
            file for file in folder.rglob("*") if file.suffix in (".yaml", ".py") and file.is_file()
        )
        found["evaluation.include_path"] = {"files of tasks": digest_files(files, folder)}
    return found
