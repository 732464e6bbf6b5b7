"""Samples with real pictures, and models that fit the tiny tokenizer."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import make_model
from training_runs import RECIPE
from transformers import SiglipImageProcessorPil

from m3.data.sample import Sample, Turn
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor

SCALES = [1, 4, 9, 36, 144]


@pytest.fixture(scope="session")
def processor() -> M3Processor:
    """48x48 pixels, 12x12 tokens, five scales."""
    nesting = {"kind": "grid_pool", "trained_scales": SCALES}
    image_processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    return M3Processor(image_processor, build_tokenizer(), grid=(12, 12), nesting=nesting)


@pytest.fixture(scope="session")
def make_tuned(processor: M3Processor) -> Callable[..., M3ForConditionalGeneration]:
    """A random model of the processor's vocabulary; `decoder` names its type."""

    def make(decoder: str = "aria_text", **changes) -> M3ForConditionalGeneration:
        return make_model(
            decoder=decoder,
            vocab_size=len(processor.tokenizer),
            image_token_id=processor.image_token_id,
            **changes,
        )

    return make


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """One round, three rounds, two images, and one image again."""
    asks = [Turn("user", "<image>\nWhat colour is the background?"), Turn("assistant", "red")]
    more = [
        Turn("user", "How many shapes are there?"),
        Turn("assistant", "4"),
        Turn("user", "Read the number."),
        Turn("assistant", "4 7 2"),
    ]
    two = [Turn("user", "<image>\n<image>\nWhich bar is the highest?"), Turn("assistant", "blue")]
    return [
        Sample("one", (picture(0),), tuple(asks)),
        Sample("rounds", (picture(1),), tuple(asks + more)),
        Sample("two", (picture(2), picture(3)), tuple(two)),
        Sample("again", (picture(0),), tuple(asks)),
    ]


@pytest.fixture(scope="session")
def text_sample() -> Sample:
    """No image."""
    return Sample("text", (), (Turn("user", "Read the second line."), Turn("assistant", "apple")))


def write_recipe(tmp_path: Path) -> Path:
    """A folder with a LLaVA JSON of eight pictures, a tokenizer, and a recipe."""
    records = []
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        talk = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": str(n)}]
        records.append({"id": str(n), "image": f"{n}.png", "conversations": talk})
    records.append(
        {
            "id": "text",
            "conversations": [
                {"from": "human", "value": "Say one."},
                {"from": "gpt", "value": "1"},
            ],
        }
    )
    (tmp_path / "data.json").write_text(json.dumps(records))
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(
        tmp_path / "tokenizer"
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="session")
def make_recipe() -> Callable[[Path], Path]:
    """Writes such a folder."""
    return write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Such a folder of the test's own."""
    return write_recipe(tmp_path)
