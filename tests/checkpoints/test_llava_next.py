"""Images of any resolution: the original M3-NeXT format against what the original implementation
computed, and back.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import ids_of
from numpy.lib.npyio import NpzFile
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.formats.llava_tiling import problems
from m3.data.multiscale import expand
from m3.data.tokenized import Tokenized
from m3.model import ImageInputs, M3ForConditionalGeneration
from m3.nesting import Tiling
from m3.nesting.tiling import AnyRes, AspectRatioTiles, PinpointTiles, SingleTile
from m3.processing import M3Processor, expand_image_tokens

ANYRES = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "anyres"
SCALES = (1, 4, 9, 16, 36, 64, 144, 576)


@pytest.fixture(scope="module")
def reference() -> NpzFile:
    return np.load(ANYRES / "reference.npz")


@pytest.fixture(scope="module")
def anyres(tmp_path_factory: pytest.TempPathFactory, tokenizer_96: Path) -> Path:
    dest = tmp_path_factory.mktemp("anyres") / "native"
    convert(ANYRES, dest, options=Options(tokenizer=tokenizer_96))
    return dest


@pytest.fixture(scope="module")
def model(anyres: Path) -> M3ForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(anyres).eval()


@pytest.fixture(scope="module")
def processor(anyres: Path) -> M3Processor:
    return AutoProcessor.from_pretrained(anyres)


def test_tilings_that_the_format_does_not_know_are_named() -> None:
    def named(tiling: Tiling) -> list[str]:
        return [text for text, is_problem in problems(tiling, "truncate").items() if is_problem]

    square = {"tile_size": 336, "grid_pinpoints": [[336, 672]]}
    assert named(SingleTile()) == named(PinpointTiles(**square)) == named(AnyRes(**square)) == []
    assert named(AspectRatioTiles(tile_size=336)) == [
        "the tiling internvl (single, anyres, tiles are)"
    ]
    assert named(PinpointTiles()) == ["tiling tiles without grid_pinpoints"]
    (rounding,) = named(AnyRes(**square, unpad_rounding="seven_digits"))
    assert "unpad_rounding seven_digits, since its code is truncate" in rounding


def test_pixel_values_equal_the_originals(processor: M3Processor, reference: NpzFile) -> None:
    """Of an image of 640 x 420 (width x height), the whole and 2 x 2 tiles. Measured: 0."""
    prepared = processor.prepare_images([ANYRES / "image.png"])
    np.testing.assert_allclose(
        prepared.pixel_values, reference["pixel_values"][0], atol=1e-6, rtol=0
    )
    assert prepared.entries(processor.reader.tiling)["image_sizes"].tolist() == [[420, 640]]


@pytest.mark.parametrize("scale", SCALES)
def test_embeddings_and_logits_equal_the_originals_at_every_scale(
    scale: int, model: M3ForConditionalGeneration, processor: M3Processor, reference: NpzFile
) -> None:
    """From the image file through our own preprocessing.

    Measured: embeddings 5e-7, logits 2.5e-7 (float32).
    """
    inputs = processor(
        images=ANYRES / "image.png", text=processor.image_token, matryoshka_vis_token_scale=scale
    )
    del inputs["attention_mask"]
    (count,) = processor.count_tokens([(420, 640)], scale)
    assert inputs["input_ids"].shape == (1, count)
    ids = expand_image_tokens(
        ids_of(reference, processor.image_token_id), processor.image_token_id, [count]
    )
    inputs["input_ids"] = torch.tensor([ids])
    images = ImageInputs(**{name: value for name, value in inputs.items() if name != "input_ids"})
    with torch.no_grad():
        embeds = model.model.embed(inputs["input_ids"], images, images.spans(model.config.reader))
        logits = model(**inputs).logits
    np.testing.assert_allclose(embeds, reference[f"embeds_{scale}"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits, reference[f"logits_{scale}"], atol=1e-5, rtol=0)


def test_the_packed_training_loss_is_the_originals(
    model: M3ForConditionalGeneration, processor: M3Processor, reference: NpzFile
) -> None:
    """All five trained scales in one row; the original ran five passes and averaged.

    Measured difference: 5e-7.
    """
    prepared = processor.prepare_images([ANYRES / "image.png"])
    mask = (reference["train_labels"][0] != -100).tolist()
    tokenized = Tokenized(ids_of(reference, processor.image_token_id), mask, 1)
    sequences = expand(tokenized, processor.ladder, processor, {None: prepared.images})
    row = {
        "input_ids": np.concatenate([s.input_ids for s in sequences]),
        "labels": np.concatenate([s.labels for s in sequences]),
        "position_ids": np.concatenate([np.arange(len(s.input_ids)) for s in sequences]),
        "loss_weights": np.concatenate(
            [np.full(len(s.input_ids), s.weight, np.float32) for s in sequences]
        ),
    }
    batch = {name: torch.from_numpy(values)[None] for name, values in row.items()}
    with torch.no_grad():
        output = model(
            **batch,
            **prepared.entries(processor.reader.tiling),
            image_scales=torch.tensor(processor.trained_scales),
            image_index=torch.zeros(len(sequences), dtype=torch.int64),
        )
    assert abs(output.loss.item() - float(reference["train_loss"])) < 1e-5
    assert output.scales.tolist() == [1, 9, 36, 144, 576]


def test_there_and_back_is_byte_equal(anyres: Path, tmp_path: Path) -> None:
    convert(anyres, tmp_path / "back", to="m3")
    ours, theirs = (
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(ANYRES / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys() and "model.image_newline" in ours
    assert all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype
        for name in theirs
    )
    config, original = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", ANYRES)
    )
    differing = {
        key for key in original.keys() | config.keys() if original.get(key) != config.get(key)
    }
    assert differing == {"transformers_version"}
