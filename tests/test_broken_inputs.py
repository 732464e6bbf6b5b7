"""Right command lines, recipes and configurations, each broken in one place: every answer names the
place and says what was expected there, in words, without a traceback.

tests/serving/test_broken_requests.py does the same to requests.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3 import config
from m3.cli import main
from m3.inference.loading import read_config
from m3.training.command import find_recipe
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.router_recipe import BudgetRouterRecipe

TYPE_NAMES = re.compile(
    r"\b(int|str|float|bool|dict|tuple|NoneType|\w+Error)\b|Traceback|<class|\blist\[| at 0x"
)
LINES = {
    "chat": "--model-path m --image-file p.png --query q --matryoshka_vis_token_scale 9 "
    "--temperature 0.5 --top-p 0.9 --max-new-tokens 8 --dtype float32",
    "sweep": "m --tasks t --scales 1,9 --limit 3 --batch-size 4 --frames 8 --dtype float32 "
    "--methods nesting --out o --data-root d --device cpu --baseline b",
    "convert": "a b --to llava-hf --format m3",
    "assemble": "d --vision v --decoder w --seed 3",
    "train": "tiny_all_scales --dry-run --devices 8 --accelerator H100",
    "submit": "run --all",
    "serve": "--model-path m --port 8000 --host h",
    "report": "run --accelerator H100 --formats svg",
    "data check": "tiny_all_scales --allow x",
    "data show": "tiny_all_scales --out p.html",
    "data fetch-eval": "m3_tiny --data-root d --include-path i",
    "bench cost": "m --scales 1 --batch-sizes 1 --dtype float32 --accelerator H100 --text-tokens 3",
}
NUMBERS = ("--limit", "--batch-size", "--max-new-tokens", "--temperature", "--top-p", "--seed")
NUMBERS += ("--port", "--devices", "--text-tokens")
CHOICES = ("--dtype", "--accelerator", "--to", "--format", "--formats")
RECIPES = ("tiny_all_scales", "llava_1_5_7b_m3", "sft", "tiny_router")


def broken_lines() -> Iterator[tuple[str, str]]:
    """(line, the option that is wrong): a letter left out of each option, and wrong values."""
    draw = random.Random(0)
    for verb, line in LINES.items():
        words = line.split()
        for place, word in enumerate(words):
            if not word.startswith("--"):
                continue
            letter = draw.randrange(3, len(word))
            misspelt = word[:letter] + word[letter + 1 :]
            yield " ".join([verb, *words[:place], misspelt, *words[place + 1 :]]), word
            if word in NUMBERS or word in CHOICES:
                yield " ".join([verb, *words[: place + 1], "many", *words[place + 2 :]]), word


@pytest.mark.parametrize(("line", "option"), broken_lines())
def test_a_broken_command_line(line: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("m3 ") and option in message
    assert any(
        word in message for word in ("Did you mean", "expected", "invalid choice", "required")
    )
    assert not TYPE_NAMES.search(message), message


def leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no mapping, with its keys."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*place, str(key)))
    else:
        yield place, tree


def wrong_value(value: Any) -> str:
    """A value of another kind, as a recipe has it."""
    if isinstance(value, str) or value is None:
        return "[[1]]"
    return "{a: {b: 1}}" if isinstance(value, (list, dict)) else "[many]"


def broken_recipes() -> Iterator[tuple[str, str, str]]:
    """(recipe, override, where): keys with a letter too much, and values of another kind."""
    draw = random.Random(0)
    for name in RECIPES:
        kind = BudgetRouterRecipe if name == "tiny_router" else Recipe
        tree = config._plain(config.load(find_recipe(name), kind))
        places = draw.sample(sorted(leaves(tree), key=str), 22)
        for place, value in places:
            key = ".".join(place)
            yield name, f"{key}={wrong_value(value)}", key
            yield name, f"{key}z=1", f"{place[-1]}z"


@pytest.mark.parametrize(("name", "override", "place"), broken_recipes())
def test_a_broken_recipe(name: str, override: str, place: str) -> None:
    kind = BudgetRouterRecipe if name == "tiny_router" else Recipe
    with pytest.raises(ValueError, match=".") as refused:
        config.load(find_recipe(name), kind, [override])
    message = str(refused.value)
    assert place in message
    assert "expected" in message or "unknown key" in message, message
    assert not TYPE_NAMES.search(message.replace(repr(override), "")), message


OWN_SECTIONS = ("budget_choice", "connector", "nesting", "tiling")
NAMES_ONLY = ("transformers_version", "architectures", "model_type", "_name_or_path")


def broken_configurations() -> Iterator[tuple[str, Any]]:
    """(key, value): values of another kind in config.json of m3-tiny."""
    settings = json.loads(Path("playground/m3-tiny/config.json").read_text())
    for place, value in leaves(settings):
        # transformers reads what stands in rope_parameters later, when a layer is made
        if place[-1] not in NAMES_ONLY and "rope_parameters" not in place:
            yield ".".join(place), 7 if isinstance(value, str) else "x"
            yield ".".join(place), {"a": 1}


@pytest.mark.parametrize(("key", "value"), broken_configurations())
def test_a_broken_configuration(key: str, value: Any, tmp_path: Path) -> None:
    settings = json.loads(Path("playground/m3-tiny/config.json").read_text())
    *sections, last = key.split(".")
    section = settings
    for name in sections:
        section = section[name]
    section[last] = value
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=".") as refused:
        read_config(tmp_path)
    message = str(refused.value)
    assert "config.json" in message and last in message
    assert not TYPE_NAMES.search(message), message
