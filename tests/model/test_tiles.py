"""Tiles through processor, collator and model: placeholders equal features for every tiling,
scale, and mixture of them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_model
from transformers import AutoModelForImageTextToText, SiglipImageProcessorPil

from m3.auto import M3Processor
from m3.bench.published import published_batches, published_loss
from m3.data.collate import Collator
from m3.data.sample import Sample, Turn
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.model import M3ForConditionalGeneration
from m3.nesting import TILINGS

PINPOINTS = [[48, 96], [96, 48], [96, 96]]
SETTINGS = {
    "single": {},
    "tiles": {"kind": "tiles", "tile_size": 48, "grid_pinpoints": PINPOINTS},
    "anyres": {"kind": "anyres", "tile_size": 48, "grid_pinpoints": PINPOINTS},
    "internvl": {"kind": "internvl", "tile_size": 48, "max_tiles": 6},
}
SIZES = [(90, 90), (20, 70), (70, 20), (50, 80)]
SCALES = (1, 4, 9, 36, 144)
NESTING = {"kind": "grid_pool", "trained_scales": list(SCALES)}
PROMPTS = ["what is on <image> and <image>?", "<image>", "and on <image>?"]


def make_processor(kind: str) -> M3Processor:
    image_processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    return M3Processor(
        image_processor, build_tokenizer(), grid=(12, 12), nesting=NESTING, tiling=SETTINGS[kind]
    )


def make_tiled(
    kind: str, processor: M3Processor, decoder: str = "llama"
) -> M3ForConditionalGeneration:
    return make_model(
        decoder=decoder,
        vocab_size=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
        tiling=SETTINGS[kind],
    )


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 255, (*SIZES[number], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(number: int, folder: Path) -> str:
    path = folder / f"{number}.png"
    picture(number).save(path)
    return str(path)


def test_every_tiling_is_tested() -> None:
    assert set(SETTINGS) == set(TILINGS)


@pytest.mark.parametrize("kind", TILINGS)
@pytest.mark.parametrize("scale", [*SCALES, [1, 144, 36, 9]], ids=str)
def test_placeholders_equal_features(kind: str, scale: int | list[int]) -> None:
    """Four images of different tile counts in three rows; each row answers as it does alone."""
    processor = make_processor(kind)
    model = make_tiled(kind, processor)
    pictures = [picture(number) for number in range(4)]
    counts = processor.count_tokens(SIZES, scale)
    batch = processor(images=pictures, text=PROMPTS, matryoshka_vis_token_scale=scale)
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert placeholders == [counts[0] + counts[1], counts[2], counts[3]]
    assert ("image_tiles" in batch, "image_sizes" in batch) == (kind != "single", kind == "anyres")
    with torch.no_grad():
        logits = model(**batch).logits
    first = 0
    for row, prompt in enumerate(PROMPTS):
        last = first + prompt.count("<image>")
        scales = scale if isinstance(scale, int) else scale[first:last]
        alone = processor(
            images=pictures[first:last], text=prompt, matryoshka_vis_token_scale=scales
        )
        with torch.no_grad():
            expected = model(**alone).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, rtol=1e-4, atol=1e-5)
        first = last


@pytest.mark.parametrize("kind", ["tiles", "anyres", "internvl"])
def test_generation_beams_and_features_seen_before(kind: str) -> None:
    processor = make_processor(kind)
    model = make_tiled(kind, processor)
    pictures = [picture(number) for number in range(4)]
    batch = processor(images=pictures, text=PROMPTS, matryoshka_vis_token_scale=[4, 9, 36, 1])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    greedy = model.generate(**batch, **options)
    with torch.no_grad():
        seen = model.get_image_features(batch.pop("pixel_values")).pooler_output
    assert torch.equal(model.generate(**batch, image_features=seen, **options), greedy)
    copies = model.generate(
        **batch, image_features=seen, num_return_sequences=2, num_beams=2, **options
    )
    assert copies.shape == (6, greedy.shape[1])
    for row in range(3):  # beams of a row are those it has alone
        real = batch["attention_mask"][row].bool()
        spans, start = [[0, 1], [2], [3]][row], int(batch["image_tiles"][: [0, 2, 3][row]].sum())
        tiles = batch["image_tiles"][spans]
        alone = {
            name: batch[name][spans]
            for name in ("image_scales", "image_tiles", "image_sizes")
            if name in batch
        }
        alone |= {
            "input_ids": batch["input_ids"][row][real][None],
            "image_features": seen[start : start + tiles.sum()],
        }
        found = model.generate(**alone, num_return_sequences=2, num_beams=2, **options)
        assert torch.equal(found[:, -4:], copies[2 * row : 2 * row + 2, -4:])


def samples(folder: Path) -> list[Sample]:
    first = (
        Turn("user", "<image> what?"),
        Turn("assistant", "red"),
        Turn("user", "and?"),
        Turn("assistant", "two"),
    )
    both = (Turn("user", "<image> and <image>?"), Turn("assistant", "blue circle"))
    return [
        Sample("a", (png(1, folder),), first),
        Sample("b", (png(2, folder), png(3, folder)), both),
    ]


@pytest.mark.parametrize(
    ("kind", "decoder", "tiles"),
    [
        ("anyres", "llama", [3, 3, 5]),
        ("anyres", "qwen3_moe", [3, 3, 5]),
        ("tiles", "llama", [3, 3, 5]),
        ("internvl", "llama", [4, 5, 7]),
    ],
)
def test_packed_equals_unpacked_and_the_published_loop(
    kind: str, decoder: str, tiles: list[int], tmp_path: Path
) -> None:
    """Loss and gradients, the newline vector's among them.

    Measured: 2e-7 of the loss, 1.3e-7 of the gradients' norm.
    """
    processor = make_processor(kind)
    model = make_tiled(kind, processor, decoder).train()
    packed = Collator(processor, scales=(1, 9, 36), pack_length=500)(samples(tmp_path))
    assert packed["image_tiles"].tolist() == tiles
    assert len(packed["image_scales"]) == 9 and len(packed["input_ids"]) < 6
    losses, gradients = [], []
    for loss in (
        model(**packed).loss,
        model(**Collator(processor, scales=(1, 9, 36))(samples(tmp_path))).loss,
        published_loss(model, published_batches(samples(tmp_path), processor, (1, 9, 36))),
    ):
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
        if kind == "anyres":
            assert model.model.image_newline.grad.norm() > 0
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() / gradients[0].norm() < 1e-5


def test_a_rank_without_an_image_runs_the_newline_too() -> None:
    processor = make_processor("anyres")
    model = make_tiled("anyres", processor).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    model(ids, labels=ids).loss.backward()
    assert all(
        p.grad is not None for p in (model.model.image_newline, *model.model.connector.parameters())
    )
    assert model.model.image_newline.grad.norm() == 0


@pytest.mark.parametrize("kind", TILINGS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    processor = make_processor(kind)
    model = make_tiled(kind, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.tiling == model.config.tiling
    assert (
        M3Processor.from_pretrained(tmp_path).tiling
        == processor.tiling
        == model.config.tiling.to_dict()
    )
    assert ("model.image_newline" in model.state_dict()) == (kind == "anyres")
    if kind == "anyres":
        assert torch.equal(again.model.image_newline, model.model.image_newline)
        fresh = M3ForConditionalGeneration(model.config).model.image_newline
        assert 0.3 < fresh.std().item() * 32**0.5 < 2


def test_errors_name_both_numbers() -> None:
    processor = make_processor("anyres")
    model = make_tiled("anyres", processor)
    batch = dict(processor(images=picture(0), text="<image>", matryoshka_vis_token_scale=9))
    with pytest.raises(ValueError, match=r"image_tiles \[4\] are 4 tiles, but 5 tiles were given"):
        model(**batch | {"image_tiles": torch.tensor([4])})
    with pytest.raises(ValueError, match=r"needs the size of each image in pixels: image_sizes"):
        model(**{name: value for name, value in batch.items() if name != "image_sizes"})
    with pytest.raises(
        ValueError, match="5 images by image_tiles, 1 by image_sizes, 5 by tile_tokens"
    ):
        model(**{name: value for name, value in batch.items() if name != "image_tiles"})
    with pytest.raises(
        ValueError,
        match=r"has 51 image placeholders, but image_scales \[1\] ask for 7: \[7\] per "
        r"span",
    ):
        model(**batch | {"image_scales": torch.tensor([1])})
    with pytest.raises(
        ValueError,
        match=r"tile_size is 24, but the encoder takes images of 48 x "
        r"48 pixels",
    ):
        make_model(tiling={"kind": "tiles", "tile_size": 24})
    with pytest.raises(
        ValueError,
        match="the tiling anyres has no pinpoints; its settings are kind, tile_size, grid_pin",
    ):
        make_model(tiling={"kind": "anyres", "pinpoints": []})
