"""docs/recipe_keys.md is a recipe, has every key of the dataclasses, and tells the right defaults."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from m3.config import dump, load
from m3.data.formats.settings import Filters
from m3.data.recipe import Data, Source
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import (
    Adapter,
    Context,
    Distil,
    Evaluation,
    Hardware,
    HeldOut,
    NewModel,
    Optimiser,
    Parts,
    Schedule,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe_keys.md"
SECTIONS = (
    *(Recipe, Data, Source, Filters, Parts, NewModel, Context, Distil, Schedule, Optimiser),
    *(Hardware, Adapter, HeldOut, Evaluation),
)
CHOSEN = {"image_folder", "model", "steps"}
"""Keys that have a default and stand there with another value."""


def read_block() -> str:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return block


def read_page(folder: Path, text: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load(folder / "recipe.yaml", Recipe)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_told(section: Any) -> None:
    keys = set(re.findall(r"^[ #-]*([a-z_0-9]+):", read_block(), re.MULTILINE))
    names = {field.name for field in dataclasses.fields(section) if field.init}
    assert len(names) >= 2 and names <= keys


def test_the_page_is_a_recipe_and_its_defaults_are_the_real_ones(tmp_path: Path) -> None:
    recipe = read_page(tmp_path, read_block())
    assert isinstance(recipe.data, Data)
    for section in (recipe, recipe.data, *recipe.data.listed, recipe.parts, recipe.schedule):
        for field in dataclasses.fields(section):
            if field.default is not dataclasses.MISSING and field.name not in CHOSEN:
                assert getattr(section, field.name) == field.default, field.name
    assert recipe.optimiser == Optimiser() and recipe.hardware == Hardware()
    # what is left out is the same
    needed = dump(recipe)
    assert load(tmp_path / "recipe.yaml", Recipe) == read_page(tmp_path, needed)


SUBSECTIONS = {"distil": Distil(), "adapter": Adapter()}


@pytest.mark.parametrize("name", ["context", "distil", "adapter", "held_out", "evaluation"])
def test_a_section_in_comments_can_be_taken(name: str, tmp_path: Path) -> None:
    block = read_block()
    lines = re.search(rf"^# {name}:.*\n((?:#   .*\n)+)", block, re.MULTILINE)
    assert lines is not None
    section = f"{name}:\n" + re.sub(r"^# ", "", lines[1], flags=re.MULTILINE)
    without = re.sub(rf"^{name}: null.*\n", "", block, flags=re.MULTILINE)
    value = getattr(read_page(tmp_path, f"{without}{section}"), name)
    assert value is not None and value == SUBSECTIONS.get(name, value)
