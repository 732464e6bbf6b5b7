"""Stages one after the other by one command, each starting from what the one before left.

A recipe with `stages` is everything they share, and a list of `{name, ...what differs}`. Stage
`name` runs in `run/name`; from the second on, `model` is the predecessor's `checkpoints/final`. A
finished stage is left alone, so the same command goes on where it was interrupted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3.config import decode
from m3.training.recipe.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Chain:
    """`shared`: a recipe's keys; `stages`: each a name and the keys that differ."""

    run: str
    stages: tuple[dict, ...]
    shared: dict

    def __post_init__(self) -> None:
        stage_names = [stage.get("name") for stage in self.stages]
        if (
            not stage_names
            or len(set(stage_names)) < len(stage_names)
            or not all(isinstance(stage_name, str) and stage_name for stage_name in stage_names)
        ):
            raise ValueError(
                "stages: expected a list in which each has a name of its own, got "
                f"the names {stage_names}"
            )


def recipes(chain: Chain) -> Iterator[Recipe]:
    """The stages in order."""
    before: str | None = None
    for stage in chain.stages:
        stage_name = stage["name"]
        _check_own(stage, is_first=before is None)
        merged = _merged(
            chain.shared,
            {
                stage_key: stage_value
                for stage_key, stage_value in stage.items()
                if stage_key != "name"
            },
        )
        merged["run"] = f"{chain.run}/{stage_name}"
        if before is not None:
            merged.pop("new_model", None)
            merged["reset_connector"] = False
            merged["model"] = before
        yield decode(merged, Recipe, f"stage {stage_name}")
        before = f"{merged['run']}/checkpoints/final"


def _check_own(stage: Mapping[str, Any], is_first: bool) -> None:
    """A `ValueError` for a key that the stage's place in the chain decides, and that would be
    passed over.
    """
    decided = {"run": "is the chain's and the stage's name"}
    if not is_first:
        decided |= dict.fromkeys(("model", "new_model"), "is what the stage before leaves")
        decided["reset_connector"] = "draws anew what the stage before has trained"
    for decided_key, why in decided.items():
        if decided_key in stage:
            raise ValueError(f"stage {stage['name']}: {decided_key} {why}; leave it out")


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge, anything else is replaced, as with `base:`."""
    merged = dict(shared)
    for entry_key, entry_value in own.items():
        old_entry = merged.get(entry_key)
        merged[entry_key] = (
            _merged(old_entry, entry_value)
            if isinstance(old_entry, Mapping) and isinstance(entry_value, Mapping)
            else entry_value
        )
    return merged
