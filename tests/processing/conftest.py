"""A tokenizer of a few hundred tokens, and processors around it."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from m3.data.synthetic.tokenizer import build_tokenizer
from m3.processing import M3Processor

MakeProcessor = Callable[..., M3Processor]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_processor(tokenizer: PreTrainedTokenizerFast) -> MakeProcessor:
    def make(**settings: Any) -> M3Processor:
        return M3Processor(
            SiglipImageProcessorPil(size={"height": 24, "width": 24}), tokenizer, **settings
        )

    return make


@pytest.fixture(scope="session")
def processor(make_processor: MakeProcessor) -> M3Processor:
    return make_processor()
