"""Aria: our numbers against transformers' own, at every resolution and scale; there and back;
training and generation.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_aria import LARGE, QUERIES, SMALL, aria_config, aria_tokenizer, save_aria
from torch import Tensor
from transformers import (
    AriaForConditionalGeneration,
    AriaProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
)

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.data.collate import Collator
from m3.data.sample import Sample, Turn
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.aria_tiles import AriaTileProcessor
from m3.training.recipe.sections import Parts
from m3.training.setup.parameter_groups import apply_parts

SAME = 1e-4  # measured: 5e-7, of logits up to 4
QUESTION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}
]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As transformers saved it, and converted."""
    folder = tmp_path_factory.mktemp("aria")
    save_aria(folder / "hub", aria_config())
    convert(folder / "hub", folder / "native")
    return folder / "hub", folder / "native"


@pytest.fixture(scope="module")
def theirs(folders: tuple[Path, Path]) -> AriaForConditionalGeneration:
    return AriaForConditionalGeneration.from_pretrained(folders[0]).eval()


@pytest.fixture(scope="module")
def ours(folders: tuple[Path, Path]) -> M3ForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(folders[1]).eval()


@pytest.fixture(scope="module")
def processor(folders: tuple[Path, Path]) -> M3Processor:
    return AutoProcessor.from_pretrained(folders[1])


def prompt(processor: M3Processor, images: int = 1) -> str:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": "What colour is it?"}]
    messages = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


@torch.no_grad()
def their_logits(theirs: AriaForConditionalGeneration, inputs: BatchFeature) -> Tensor:
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    return theirs(**{name: inputs[name] for name in names}).logits


# ---------------------------------------------------------------------- equal to transformers
@pytest.mark.parametrize(("size", "tokens"), [(SMALL, 128), (LARGE, 256)])
@pytest.mark.parametrize("images", [1, 3])
def test_logits_equal_transformers(
    size: int,
    tokens: int,
    images: int,
    ours: M3ForConditionalGeneration,
    theirs: AriaForConditionalGeneration,
    processor: M3Processor,
) -> None:
    """With experts, padded tiles and all queries."""
    shown = [
        picture(*shape, seed) for seed, shape in enumerate([(70, 40), (30, 90), (50, 50)][:images])
    ]
    inputs = processor(images=shown, text=prompt(processor, images), max_image_size=size)
    assert inputs["image_scales"].tolist() == inputs["tile_tokens"].tolist() == [tokens] * images
    assert inputs["pixel_values"].shape == (images, 3, size, size)
    assert not inputs["pixel_mask"].all()
    with torch.no_grad():
        logits = ours(**inputs).logits
    torch.testing.assert_close(logits, their_logits(theirs, inputs), rtol=0, atol=SAME)
    inputs["pixel_values"] = -inputs["pixel_values"]
    with torch.no_grad():
        assert (ours(**inputs).logits - logits).abs().max() > 1e-2, (
            "the text does not see the images"
        )


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_every_scale_is_a_slice_of_their_projector(
    size: int,
    ours: M3ForConditionalGeneration,
    theirs: AriaForConditionalGeneration,
    processor: M3Processor,
) -> None:
    inputs = processor(images=picture(70, 40), text=prompt(processor), max_image_size=size)
    pixels, mask, tokens = inputs["pixel_values"], inputs["pixel_mask"], int(inputs["tile_tokens"])
    with torch.no_grad():
        whole = theirs.get_image_features(pixels, mask).pooler_output
        seen = ours.get_image_features(pixels, mask)
    assert seen.tile_tokens.tolist() == [tokens] == [whole.shape[1]]
    assert ours.config.reader.nesting.reachable(tokens) == tuple(range(1, tokens + 1))
    for scale in (1, 2, 7, 100, tokens):
        read = ours.model.reducer.reduce(seen.pooler_output, scale, tokens)
        torch.testing.assert_close(read, whole[:, :scale], rtol=0, atol=1e-5)
        assert read.shape[1] == scale


@pytest.mark.parametrize("scale", [1, 8, 32])
def test_a_small_budget_is_their_model_with_fewer_queries(
    scale: int, folders: tuple[Path, Path], ours: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    inputs = processor(
        images=picture(70, 40), text=prompt(processor), matryoshka_vis_token_scale=scale
    )
    fewer = dict.fromkeys(QUERIES, scale)
    model = AriaForConditionalGeneration.from_pretrained(folders[0]).eval()
    model.model.multi_modal_projector.patch_to_query_dict = fewer
    with torch.no_grad():
        logits = ours(**inputs).logits
    torch.testing.assert_close(logits, their_logits(model, inputs), rtol=0, atol=SAME)


def test_the_real_geometry(tmp_path: Path) -> None:
    """490 and 980 pixels, 1225 and 4900 patches, 128 and 256 queries; only the widths are tiny."""
    theirs = save_aria(
        tmp_path / "hub", aria_config({1225: 128, 4900: 256}, 980, experts=8, width=8), 980, 336
    )
    convert(tmp_path / "hub", tmp_path / "native")
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "native").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    for size, tokens in ((490, 128), (980, 256)):
        inputs = processor(images=picture(300, 200), text=prompt(processor), max_image_size=size)
        assert inputs["tile_tokens"].tolist() == [tokens]
        with torch.no_grad():
            logits = ours(**inputs).logits
        torch.testing.assert_close(logits, their_logits(theirs, inputs), rtol=0, atol=SAME)


# ---------------------------------------------------------------------- resolutions and splits
def test_mixed_sizes_and_splits_in_one_batch_equal_separate_calls(
    ours: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    shown = [picture(70, 40, 1), picture(40, 70, 2), picture(60, 60, 3)]
    sizes, splits, scales = [SMALL, LARGE, SMALL], [False, False, True], [100, 200, 5]
    options = {"max_image_size": sizes, "split_image": splits, "matryoshka_vis_token_scale": scales}
    together = processor(images=shown, text=[prompt(processor)] * 3, **options)
    assert together["pixel_values"].shape == (7, 3, LARGE, LARGE)
    assert together["image_tiles"].tolist() == [1, 1, 5]
    assert together["tile_tokens"].tolist() == [128, 256, 128]
    with torch.no_grad():
        logits = ours(**together).logits
        for row, image in enumerate(shown):
            choice = {name: values[row] for name, values in options.items()}
            alone = processor(images=image, text=prompt(processor), **choice)
            length = alone["input_ids"].shape[1]
            torch.testing.assert_close(
                logits[row, -length:], ours(**alone).logits[0], rtol=0, atol=1e-5
            )


def test_a_batch_of_two_sizes_needs_tile_tokens(
    ours: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    two = processor(
        images=[picture(70, 40)] * 2,
        text=prompt(processor, 2),
        max_image_size=[SMALL, LARGE],
        matryoshka_vis_token_scale=5,
    )
    with pytest.raises(
        ValueError,
        match=r"makes \[128, 256\] tokens of the tiles, but by tile_tokens they have "
        r"\[256, 256\]",
    ):
        ours(**{name: value for name, value in two.items() if name != "tile_tokens"})


# ---------------------------------------------------------------------- there and back
def test_back_to_transformers_nothing_is_missing_and_bytes_are_equal(
    folders: tuple[Path, Path],
    tmp_path: Path,
    theirs: AriaForConditionalGeneration,
    processor: M3Processor,
) -> None:
    hub, native = folders
    convert(native, tmp_path / "back", to="aria")
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert isinstance(model, AriaForConditionalGeneration)
    assert not any(report.values()), report
    assert (hub / "model.safetensors").read_bytes() == (
        tmp_path / "back" / "model.safetensors"
    ).read_bytes()
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((hub / name).read_text()) == json.loads(
            (tmp_path / "back" / name).read_text()
        )
    inputs = processor(images=picture(70, 40), text=prompt(processor))
    assert torch.equal(their_logits(model.eval(), inputs), their_logits(theirs, inputs))
    reader = AutoProcessor.from_pretrained(tmp_path / "back")
    assert isinstance(reader, AriaProcessor)
    assert (reader.image_processor.max_image_size, reader.image_processor.min_image_size) == (
        LARGE,
        19,
    )
    assert reader.image_token == "<|img|>"
    assert reader.apply_chat_template(QUESTION, add_generation_prompt=True) == prompt(processor)
    convert(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        native / "model.safetensors"
    ).read_bytes()
    for name in ("config.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_text() == (native / name).read_text()


def test_names_are_those_of_the_hub(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with safe_open(folders[0] / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {
        "vision_tower.post_layernorm.weight",
        "multi_modal_projector.cross_attn.multihead_attn.in_proj_weight",
        "language_model.model.layers.1.mlp.experts.fc1.weight",
        "language_model.model.layers.1.mlp.experts.fc2.weight",
        "language_model.model.layers.1.mlp.router.weight",
        "language_model.model.layers.1.mlp.shared_experts.up_proj.weight",
        "language_model.lm_head.weight",
    } <= names
    with safe_open(folders[1] / "model.safetensors", framework="pt") as file:
        assert len(names) == len(set(file.keys())) == 82


def test_scales_of_further_training_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = M3ForConditionalGeneration.from_pretrained(folders[1])
    processor = M3Processor.from_pretrained(folders[1])
    assert model.config.nesting.trained_scales == (128, 256)
    model.config.nesting = type(model.config.nesting)(
        kind="query_prefix", trained_scales=(1, 8, 32)
    )
    processor.nesting = {"kind": "query_prefix", "trained_scales": [1, 8, 32]}
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    convert(tmp_path / "trained", tmp_path / "back", to="aria")
    convert(tmp_path / "back", tmp_path / "again")
    assert M3Processor.from_pretrained(tmp_path / "again").trained_scales == [1, 8, 32]
    assert not any(
        AriaForConditionalGeneration.from_pretrained(tmp_path / "back", output_loading_info=True)[
            1
        ].values()
    )


def test_what_aria_cannot_hold_is_refused(
    tiny_checkpoint: Callable[[Path], Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tiny = tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(
        ValueError, match="cannot hold the vision encoder siglip_vision_model .*Keep the native"
    ):
        convert(tiny, tmp_path / "no", to="aria")
    with pytest.raises(ValueError, match="leave --vision-tower out"):
        convert(folders[0], tmp_path / "no", options=Options(vision_tower=folders[0]))
    other = aria_tokenizer()
    other.save_pretrained(tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text().replace("<|img|>", "<|pic|>")
    (tmp_path / "other" / "tokenizer.json").write_text(text)
    with pytest.raises(
        ValueError,
        match=r"is the token '<\|pic\|>', expected '<\|img\|>'. Give "
        r"the tokenizer",
    ):
        convert(folders[0], tmp_path / "no", options=Options(tokenizer=tmp_path / "other"))
    assert not (tmp_path / "no").exists()


# ---------------------------------------------------------------------- use
def test_generate_with_the_chat_template_equals_transformers(
    ours: M3ForConditionalGeneration, theirs: AriaForConditionalGeneration, processor: M3Processor
) -> None:
    inputs = processor(
        images=[picture(70, 40), picture(30, 90)], text=prompt(processor, 2), max_image_size=SMALL
    )
    ids = ours.generate(**inputs, max_new_tokens=5, do_sample=False)
    expected = theirs.generate(
        **{
            name: inputs[name]
            for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
        },
        max_new_tokens=5,
        do_sample=False,
    )
    assert torch.equal(ids, expected)
    assert ids.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("pack_length", [None, 640])
def test_a_training_step_over_scales(
    pack_length: int | None, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Through the collator: finite loss per scale, gradients for the queries that were read,
    none where nothing is read.
    """
    model = M3ForConditionalGeneration.from_pretrained(folders[1]).train()
    processor = M3Processor.from_pretrained(folders[1])
    apply_parts(model, Parts(vision_tower=1e-4, connector=1e-4, decoder=1e-4))
    for name, seed in (("a.png", 1), ("b.png", 2)):
        picture(60, 40, seed).save(tmp_path / name)
    samples = [
        Sample(
            id=name,
            images=(tmp_path / name,),
            turns=(Turn("user", "<image>\nWhat colour is it?"), Turn("assistant", "red")),
        )
        for name in ("a.png", "b.png")
    ]
    batch = Collator(processor, scales=(1, 8, 32), pack_length=pack_length)(samples)
    assert batch["tile_tokens"].tolist() == [256, 256]
    assert batch["image_scales"].tolist().count(32) == 2
    output = model(**batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert output.scales.tolist() == [1, 8, 32]
    assert output.balance_losses.shape == (2,)
    assert output.expert_load.shape == (2, 64)
    moved = model.model.connector.query.grad.abs().sum(1)
    assert (moved[:32] > 0).all()
    assert (moved[32:] == 0).all()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    ]
    experts = model.model.language_model.layers[0].mlp.experts
    assert experts.gate_up_proj.grad.abs().sum() > 0


def test_processor_is_saved_with_its_image_settings(processor: M3Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded.image_processor, AriaTileProcessor)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.image_processor.size_tokens == [[SMALL, 128], [LARGE, 256]]
