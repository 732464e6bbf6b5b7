"""A tokenizer of 96 words, and the fixture in the original M3 format, converted once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_tools import make_tokenizer

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert

FLAT = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"


@pytest.fixture(scope="session")
def tokenizer_96(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer_96")
    make_tokenizer(96).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory, tokenizer_96: Path) -> Path:
    """The fixture, converted."""
    dest = tmp_path_factory.mktemp("flat") / "native"
    convert(FLAT, dest, options=Options(tokenizer=tokenizer_96))
    return dest


@pytest.fixture
def copy_of_flat(tmp_path: Path) -> Callable[[], Path]:
    """A copy of the fixture that a test may damage."""

    def copy() -> Path:
        return Path(shutil.copytree(FLAT, tmp_path / "source"))

    return copy
