"""Recipes: every shipped one decodes strictly, and what cannot be is refused before anything is loaded."""

from pathlib import Path

import pytest
import yaml

import m3.training
from m3.config import dump, load
from m3.training.command import find_recipe, main
from m3.training.recipe import Recipe, Schedule, TowerRecipe

RECIPES = sorted((Path(m3.training.__file__).parents[1] / "recipes").glob("*.yaml"))


CHAINS = [path for path in RECIPES if "stages" in yaml.safe_load(path.read_text())]


def kind_of(path: Path) -> type[Recipe] | type[TowerRecipe]:
    return TowerRecipe if "vision_config" in yaml.safe_load(path.read_text()) else Recipe


def test_every_shipped_recipe_decodes_and_round_trips(tmp_path: Path) -> None:
    assert {path.stem for path in RECIPES} >= {"tiny_tower", "tiny_base", "tiny_all_scales", "tiny_quickstart"}
    assert {path.stem for path in CHAINS} == {"qwen3_moe_m3", "tiny_stages"}
    for path in [path for path in RECIPES if path not in CHAINS]:
        recipe = load(path, kind_of(path))
        (tmp_path / path.name).write_text(dump(recipe))
        assert load(tmp_path / path.name, kind_of(path)) == recipe
        assert find_recipe(path.stem) == path


def test_a_variant_is_its_base_and_the_lines_that_differ() -> None:
    whole, quick = (load(find_recipe(name), Recipe) for name in ("tiny_all_scales", "tiny_quickstart"))
    assert quick.model == whole.model
    assert quick.schedule.seed == whole.schedule.seed
    assert quick.schedule.steps < whole.schedule.steps
    assert quick.run != whole.run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.stps=3"], "unknown key 'stps' for Schedule. Did you mean 'steps'"),
        (["parts.decoder=thawed"], "parts.decoder"),
        (["scales=al"], "scales"),
        (["schedule.epochs=1"], "give exactly one of steps and epochs"),
        (["matryoshka_vis_token_scale=[]"], "at least one scale"),
        (["model=null"], "exactly one of model"),
    ],
)
def test_bad_recipes_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(find_recipe("tiny_all_scales"), Recipe, overrides)


def test_unknown_recipe_lists_the_shipped() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'tiny_al'.*tiny_all_scales.*tiny_base"):
        main(["tiny_al"])


def test_a_schedule_needs_one_length() -> None:
    with pytest.raises(ValueError, match="exactly one of steps and epochs"):
        Schedule(batch_size=1)
