"""A processor with the tiny tokenizer, and conversations made to measure."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from m3.data.sample import Sample, Turn
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.processing import M3Processor


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_processor(tokenizer: PreTrainedTokenizerFast) -> Callable[..., M3Processor]:
    def make(**settings: Any) -> M3Processor:
        return M3Processor(
            SiglipImageProcessorPil(size={"height": 8, "width": 8}), tokenizer, **settings
        )

    return make


@pytest.fixture(scope="session")
def processor(make_processor: Callable[..., M3Processor]) -> M3Processor:
    return make_processor()


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """An image whose red channel, from 0 to 255, tells which one it is."""
    return _png


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """`shades` are its images; the answers are given, so their number is the number of rounds."""

    def make(id: str, shades: tuple[int, ...] = (), answers: tuple[str, ...] = ("red",)) -> Sample:
        turns: list[Turn] = []
        for number, answer in enumerate(answers):
            marks = "<image>\n" * len(shades) if number == 0 else ""
            turns += [Turn("user", f"{marks}what is at {id} {number}?"), Turn("assistant", answer)]
        return Sample(id, tuple(_png(shade) for shade in shades), tuple(turns))

    return make
