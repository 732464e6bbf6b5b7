"""One small random model, an engine over it, and a server on the loopback in a thread of this
process.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from serving_files import serving
from tiny_models import make_model

from m3.inference import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings

Loaded = tuple[M3ForConditionalGeneration, M3Processor]


@pytest.fixture(scope="session")
def loaded(
    tiny_checkpoint: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Loaded:
    return load(tiny_checkpoint(tmp_path_factory.mktemp("serving") / "tiny"), device="cpu")


@pytest.fixture(scope="session")
def elastic(loaded: Loaded) -> Loaded:
    """The same weights, said to be trained at several resolutions."""
    processor = copy.deepcopy(loaded[1])
    processor.train_at(["1@24", "9@24", "36@24", 9, 36, 144])
    return loaded[0], processor


@pytest.fixture(scope="session")
def routed(elastic: Loaded) -> Loaded:
    """A model of random weights whose router chooses among five budgets: at the price of `auto:0.8`
    it takes the cheapest, and at that of `auto:1`, none, the best.
    """
    processor = elastic[1]
    choice = {
        "budgets": ["1@24", "9@24", "36@24", 36, 144],
        "view": 24,
        "target": "loss_gap",
        "costs": [0.1, 0.15, 0.3, 0.6, 1.0],
        "prices": [[0.8, 1e9], [1.0, 0.0]],
        "width": 16,
        "heads": 2,
    }
    model = make_model(
        seed=3,
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
        nesting=processor.nesting,
        budget_choice=choice,
    )
    with torch.no_grad():  # pictures and words decide, not what is added to both
        for name, parameter in model.model.budget_router.named_parameters():
            parameter.mul_(0.0 if name.endswith("bias") else 10.0)
    return model, processor


@pytest.fixture
def engine(loaded: Loaded) -> Iterator[Engine]:
    engine = Engine(*loaded, Settings(name="tiny"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def address(loaded: Loaded) -> Iterator[str]:
    settings = Settings(name="tiny")
    with serving(Engine(*loaded, settings), settings) as address:
        yield address


@pytest.fixture(scope="session")
def serve(loaded: Loaded) -> Callable[[Settings], AbstractContextManager[str]]:
    """A server with other settings."""
    return lambda settings: serving(Engine(*loaded, settings), settings)
