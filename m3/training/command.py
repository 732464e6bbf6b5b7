"""`m3 train RECIPE [key=value ...]`: trains what a recipe describes; the same command again resumes or does nothing."""

import argparse
import logging
from pathlib import Path

import yaml

from m3.config import load
from m3.training.recipe import Recipe, TowerRecipe


def main(argv: list[str]) -> int:
    """Parses the arguments and trains; returns the exit code."""
    parser = argparse.ArgumentParser(prog="m3 train", description=__doc__)
    parser.add_argument("recipe", help="a YAML file (see m3/recipes), or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example schedule.steps=100")
    parser.add_argument("--matryoshka_vis_token_scale", help="scales to train over, for example 1,9,36,144,576")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = list(arguments.overrides)
    if arguments.matryoshka_vis_token_scale:
        overrides.append(f"matryoshka_vis_token_scale=[{arguments.matryoshka_vis_token_scale}]")
    path = find_recipe(arguments.recipe)
    from m3.training.tower import train_tower  # the giants are imported once the arguments are known to be good
    from m3.training.tune import train_model

    if "vision_config" in yaml.safe_load(path.read_text()):
        run = train_tower(load(path, TowerRecipe, overrides))
    else:
        run = train_model(load(path, Recipe, overrides))
    print(f"trained: {run.final}\nmetrics: {run.metrics}")
    return 0


def find_recipe(name: str) -> Path:
    """The file `name`, or the shipped recipe of that name; a `ValueError` lists those."""
    shipped = Path(__file__).resolve().parents[1] / "recipes"
    for path in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise ValueError(f"no recipe {name!r}: neither a file nor one of the shipped recipes ({known})")
