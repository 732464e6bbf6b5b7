"""`m3 train RECIPE [key=value ...]`: trains what a recipe describes; the same command again
resumes or does nothing.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from m3.command_line import CommandLine
from m3.config import load
from m3.hardware import ACCELERATORS
from m3.training.recipe.recipe import Recipe, TowerRecipe
from m3.training.recipe.resolution_recipe import ResolutionRecipe
from m3.training.recipe.router_recipe import BudgetRouterRecipe
from m3.training.recipe.stages import Chain, recipes

SHIPPED = Path(__file__).resolve().parents[1] / "recipes"


def main(argv: list[str], open_benchmarks: Callable[..., Any] | None = None) -> int:
    """Parses the arguments and trains; returns the exit code.

    `open_benchmarks`: see m3/training/loop/evaluations.py.
    """
    if not argv:
        raise ValueError(f"expected a recipe: a YAML file, or a shipped one ({_shipped_names()})")
    arguments = _parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("m3").setLevel(logging.INFO)
    overrides = list(arguments.overrides)
    if arguments.matryoshka_vis_token_scale:
        overrides.append(f"matryoshka_vis_token_scale=[{arguments.matryoshka_vis_token_scale}]")
    given_recipes = read_recipes(find_recipe(arguments.recipe), overrides)
    if not arguments.dry_run and (arguments.devices, arguments.accelerator) != (None, None):
        raise ValueError("--devices and --accelerator are for --dry-run: a run takes what there is")
    # the giants are imported once the arguments are known to be good
    from m3.training.loop.distributed import world

    if arguments.dry_run:
        return _say(given_recipes, arguments.devices or world().size, arguments.accelerator)
    from m3.training.budget_router.train import train_budget_router
    from m3.training.loop.tower import train_tower
    from m3.training.loop.train import train_model
    from m3.training.resolutions.train import train_resolutions

    for recipe in given_recipes:
        _check_resume(recipe.run, arguments.resume)
        if isinstance(recipe, TowerRecipe):
            run = train_tower(recipe)
        elif isinstance(recipe, BudgetRouterRecipe):
            run = train_budget_router(recipe)
        elif isinstance(recipe, ResolutionRecipe):
            run = train_resolutions(recipe)
        else:
            run = train_model(recipe, open_benchmarks)
        if world().is_first:
            print(f"trained: {run.final}\nmetrics: {run.metrics}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine("m3 train", __doc__)
    parser.add_argument("recipe", help="a YAML file (see m3/recipes), or the name of a shipped one")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example schedule.steps=100"
    )
    parser.add_argument(
        "--matryoshka_vis_token_scale", help="scales to train over, for example 1,9,36,144,576"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run will be, and stop there"
    )
    parser.add_argument("--devices", type=int, help="of the dry run; default: as launched")
    parser.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        help="whose time and memory the dry run estimates; default: this machine's",
    )
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto: go on where it stopped; never: refuse to",
    )
    return parser


AnyRecipes = list[Recipe] | list[TowerRecipe] | list[BudgetRouterRecipe] | list[ResolutionRecipe]


def read_recipes(path: Path, overrides: list[str]) -> AnyRecipes:
    """One recipe, or the stages of a chain."""
    tree = load(path, dict, overrides)
    if "budget_router" in tree:
        return [load(path, BudgetRouterRecipe, overrides)]
    if "resolution_distillation" in tree:
        return [load(path, ResolutionRecipe, overrides)]
    if "vision_config" in tree:
        return [load(path, TowerRecipe, overrides)]
    if "stages" not in tree:
        return [load(path, Recipe, overrides)]
    stages, run = tree.pop("stages"), tree.pop("run", None)
    if not isinstance(run, str):
        raise ValueError(
            f"{path}: a recipe of several stages needs `run`, the folder that theirs are made in"
        )
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(
            f"{path}: stages: expected a list in which each has a name of its own, and the keys "
            "that differ"
        )
    return list(recipes(Chain(run=run, stages=tuple(stages), shared=tree)))


def read_model_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of one whole model; a `ValueError` for other kinds."""
    path = find_recipe(name)
    given_recipes = read_recipes(path, list(overrides))
    if len(given_recipes) != 1 or not isinstance(given_recipes[0], Recipe):
        raise ValueError(
            f"{path}: its data are not looked at so: it is a recipe of several stages, of a tower, of "
            "a budget router or of a distillation over resolutions. Give one of a whole model over "
            "the same data"
        )
    return given_recipes[0]


def find_recipe(name: str) -> Path:
    """The file `name`, or the shipped recipe of that name; a `ValueError` lists those."""
    for recipe_path in (Path(name), SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if recipe_path.is_file():
            return recipe_path
    if "=" in name:
        raise ValueError(
            "expected a recipe first (a file, or the name of a shipped one) and then key=value, "
            f"got {name!r}"
        )
    near = get_close_matches(name.removesuffix(".yaml"), _shipped_names().split(", "), n=1)
    raise ValueError(
        f"no recipe {name!r}: neither a file (looked from {Path.cwd()}) nor one of the "
        "shipped recipes."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" Shipped are {_shipped_names()}"
    )


def _shipped_names() -> str:
    return ", ".join(sorted(recipe_path.stem for recipe_path in SHIPPED.glob("*.yaml")))


def _say(given_recipes: AnyRecipes, devices: int, accelerator: str | None) -> int:
    from m3.training.checks.dry_run import plan
    from m3.training.setup.resolved import ResolvedRun

    before = None
    for recipe in given_recipes:
        if not isinstance(recipe, Recipe):
            raise ValueError(
                "--dry-run is for recipes of a whole model; those of a tower, of a budget router or "
                "of a distillation over resolutions have no plan"
            )
        print(f"run             {recipe.run}\nmodel           {recipe.model or 'of new weights'}")
        resolved = ResolvedRun(recipe, devices, before)
        print(plan(resolved, accelerator))
        before = resolved.config_left
    return 0


def _check_resume(run: str, resume: str) -> None:
    if resume == "never" and any(Path(run, "checkpoints").glob("checkpoint-*")):
        raise ValueError(
            f"{run} holds a run already and --resume never was given; give another `run=FOLDER`"
        )
