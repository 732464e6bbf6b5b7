"""A tokenizer of 96 words, and the fixture in the original M3 format, converted once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert

FLAT = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"


def make_tokenizer(words: int, *tokens: str) -> PreTrainedTokenizerFast:
    """`words` whole words, the three of Llama and `tokens` among them, and nothing else."""
    names = ["<unk>", "<s>", "</s>", *tokens]
    names += [f"w{number}" for number in range(len(names), words)]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(tokens),
    )


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
