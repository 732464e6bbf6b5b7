"""Recipes: every shipped one decodes strictly, and what cannot be is refused before anything is
loaded.
"""

from pathlib import Path

import pytest
import yaml

import m3.training
from m3.config import dump, load
from m3.training.command import find_recipe, main
from m3.training.recipe.recipe import Recipe, TowerRecipe
from m3.training.recipe.resolution_recipe import ResolutionRecipe
from m3.training.recipe.router_recipe import BudgetRouterRecipe
from m3.training.recipe.sections import Schedule

RECIPES = sorted((Path(m3.training.__file__).parents[1] / "recipes").glob("*.yaml"))


CHAINS = [path for path in RECIPES if "stages" in yaml.safe_load(path.read_text())]


KINDS: dict[str, type] = {
    "budget_router": BudgetRouterRecipe,
    "resolution_distillation": ResolutionRecipe,
    "vision_config": TowerRecipe,
}


def kind_of(path: Path) -> type:
    tree = yaml.safe_load(path.read_text())
    return next((kind for key, kind in KINDS.items() if key in tree), Recipe)


def test_every_shipped_recipe_decodes_and_round_trips(tmp_path: Path) -> None:
    assert {path.stem for path in RECIPES} >= {
        "tiny_tower",
        "tiny_base",
        "tiny_all_scales",
        "tiny_quickstart",
    }
    assert {path.stem for path in CHAINS} == {
        "qwen3_moe_m3",
        "tiny_corners",
        "tiny_places",
        "tiny_stages",
    }
    for path in [path for path in RECIPES if path not in CHAINS]:
        recipe = load(path, kind_of(path))
        (tmp_path / path.name).write_text(dump(recipe))
        assert load(tmp_path / path.name, kind_of(path)) == recipe
        assert find_recipe(path.stem) == path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_shipped_recipe_makes_squares_of_packed_rows(path: Path) -> None:
    """Naming an attention that masks whole rows would; left out, the best one for the machine is
    found.
    """
    recipe = yaml.safe_load(path.read_text())
    for stage in [recipe, *recipe.get("stages", [])]:
        assert stage.get("hardware", {}).get("attention") is None


def test_a_variant_is_its_base_and_the_lines_that_differ() -> None:
    whole, quick = (
        load(find_recipe(name), Recipe) for name in ("tiny_all_scales", "tiny_quickstart")
    )
    assert quick.model == whole.model
    assert quick.schedule.seed == whole.schedule.seed
    assert quick.schedule.steps < whole.schedule.steps
    assert quick.run != whole.run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.stps=3"], "unknown key 'stps'. Did you mean 'steps'"),
        (["parts.decoder=thawed"], "parts.decoder"),
        (["scales=al"], "scales"),
        (["schedule.epochs=1"], "give exactly one of steps and epochs"),
        (["matryoshka_vis_token_scale=[]"], "at least one scale"),
        (["model=null"], "exactly one of model"),
        (
            ["data.max_length=513"],
            "data.max_length 513 is more than a row of data.pack_length 512 tokens holds",
        ),
        (["data.pack_length=0"], "data: pack_length must be at least 1, got 0"),
        (["data.workers=-1"], "data.workers must be at least 0, got -1"),
        (
            ["data.max_images_per_row=2", "data.pack_length=null"],
            "max_images_per_row is of packed rows",
        ),
        (
            ["data.pack_length=144"],
            "no sample with an image fits 144 tokens .* at scale 144; raise the limit",
        ),
        (["data.max_length=100"], "no sample with an image fits 100 tokens"),
        (
            ["matryoshka_vis_token_scale=[9, 9]"],
            r"takes numbers of tokens from 1 .*each once, got "
            r"\[9, 9\]",
        ),
        (["matryoshka_vis_token_scale=[0, 9]"], "takes numbers of tokens from 1"),
        (
            ["scales=random", "distil={}"],
            "distil compares scales of one step, and a step of this recipe trains one",
        ),
        (["matryoshka_vis_token_scale=[9]", "distil={}"], "distil compares scales of one step"),
        (
            ["reset_connector=true", "parts.connector=frozen"],
            "so it would stay random; give parts.connector a learning",
        ),
        (
            ["optimiser.warmup=1800"],
            "optimiser.warmup is 1800 steps, and the run ends after schedule.steps 1800",
        ),
        (["optimiser.warmup=-1"], "optimiser.warmup must be a share of the steps"),
        (["schedule.steps=0"], "schedule: steps must be at least 1, got 0"),
        (["schedule.save_every=0"], "schedule: save_every must be at least 1, got 0"),
        (["schedule.steps=null", "schedule.epochs=0"], "schedule.epochs must be a number above 0"),
        (
            ["held_out={every: 1, source: {path: a, weight: 0.5}}"],
            "held_out.source: weight 0.5 would not be looked at",
        ),
        (
            ["parts.decoder=-1e-3"],
            "parts.decoder: a learning rate must be a number above 0 .* or frozen, got -0.001",
        ),
        (["parts.decoder=0"], "parts.decoder: a learning rate must be a number above 0"),
        (["parts.router=.nan"], "parts.router: a learning rate must be a number above 0"),
        (["parts.connector=.inf"], "parts.connector: a learning rate must be a number above 0"),
        (
            ["parts.vision_tower=frozen", "parts.vision_last_layers=1"],
            "vision_last_layers 1 are to train, and .* frozen",
        ),
        (
            ["parts.decoder=frozen", "parts.decoder_last_layers=1"],
            "decoder_last_layers 1 are to train, and .* frozen",
        ),
        (
            ["optimiser.max_grad_norm=-1"],
            "optimiser.max_grad_norm must be a number from 0 .0: no clipping., got -1",
        ),
        (
            ["optimiser.weight_decay=-0.1"],
            "optimiser.weight_decay must be a number from 0, got -0.1",
        ),
        (["optimiser.beta2=1"], "optimiser.beta2 must be from 0 to below 1, got 1"),
        (["scale_weights={1: .nan}"], "scale_weights .* must be positive"),
        (["scale_weights={1: .inf}"], "scale_weights .* must be positive"),
        (["schedule.seed=-1"], "schedule.seed must be at least 0, got -1"),
        (["hardware.threads=0"], "hardware: threads must be at least 1, got 0"),
        (["adapter={rank: 0}"], "adapter: rank must be at least 1, got 0"),
        (["adapter={alpha: 0}"], "adapter.alpha must be a number above 0, got 0"),
        (["adapter={dropout: 1}"], "adapter.dropout must be from 0 to below 1, got 1"),
        (["held_out={every: 0, source: {path: a}}"], "held_out: every must be at least 1, got 0"),
    ],
)
def test_bad_recipes_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(find_recipe("tiny_all_scales"), Recipe, overrides)


def test_what_contradicts_itself_is_refused_before_the_data_is_touched() -> None:
    """A row of 512 tokens does hold the largest scale of texts alone; the files need not exist."""
    text = "data.sources=[{path: nowhere.jsonl, format: text_jsonl}]"
    assert (
        load(find_recipe("tiny_all_scales"), Recipe, [text, "data.pack_length=64"]).data.longest
        == 64
    )
    with pytest.raises(
        ValueError, match="data: data.max_length 600 is more than a row of data.pack_length 512"
    ):
        main(["tiny_all_scales", "data.max_length=600", "data.sources.0.path=nowhere"])


def test_a_word_with_an_equals_sign_is_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="expected a recipe first .* got 'schedule.steps=3'"):
        main(["schedule.steps=3"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=f"no recipe 'mine.yaml': neither a file .looked from {tmp_path}. nor one of",
    ):
        main(["mine.yaml"])


def test_unknown_recipe_lists_the_shipped() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'tiny_al'.*tiny_all_scales.*tiny_base"):
        main(["tiny_al"])


def test_a_schedule_needs_one_length() -> None:
    with pytest.raises(ValueError, match="exactly one of steps and epochs"):
        Schedule(batch_size=1)
