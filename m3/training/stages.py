"""Stages one after the other by one command, each starting from what the one before left.

A recipe with `stages` is everything they share, and a list of `{name, ...what differs}`. Stage
`name` runs in `run/name`; from the second on, `model` is the predecessor's `checkpoints/final`. A
finished stage is left alone, so the same command goes on where it was interrupted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3.config import decode
from m3.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Chain:
    """`shared`: a recipe's keys; `stages`: each a name and the keys that differ."""

    run: str
    stages: tuple[dict, ...]
    shared: dict

    def __post_init__(self) -> None:
        names = [stage.get("name") for stage in self.stages]
        if (
            not names
            or len(set(names)) < len(names)
            or not all(isinstance(name, str) and name for name in names)
        ):
            raise ValueError(
                "stages: expected a list in which each has a name of its own, got "
                f"the names {names}"
            )


def recipes(chain: Chain) -> Iterator[Recipe]:
    """The stages in order."""
    before: str | None = None
    for stage in chain.stages:
        name = stage["name"]
        _check_own(stage, is_first=before is None)
        merged = _merged(
            chain.shared, {key: value for key, value in stage.items() if key != "name"}
        )
        merged["run"] = f"{chain.run}/{name}"
        if before is not None:
            merged.pop("new_model", None)
            merged["reset_connector"] = False
            merged["model"] = before
        yield decode(merged, Recipe, f"stage {name}")
        before = f"{merged['run']}/checkpoints/final"


def _check_own(stage: Mapping[str, Any], is_first: bool) -> None:
    """A `ValueError` for a key that the stage's place in the chain decides, and that would be
    passed over.
    """
    decided = {"run": "is the chain's and the stage's name"}
    if not is_first:
        decided |= dict.fromkeys(("model", "new_model"), "is what the stage before leaves")
        decided["reset_connector"] = "draws anew what the stage before has trained"
    for key, why in decided.items():
        if key in stage:
            raise ValueError(f"stage {stage['name']}: {key} {why}; leave it out")


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge, anything else is replaced, as with `base:`."""
    merged = dict(shared)
    for key, value in own.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, value)
            if isinstance(old, Mapping) and isinstance(value, Mapping)
            else value
        )
    return merged
