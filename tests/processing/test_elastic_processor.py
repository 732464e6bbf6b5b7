"""Budgets with a resolution in the processor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from m3.nesting import Budget
from m3.processing import M3Processor

MakeProcessor = Callable[..., M3Processor]
LADDER = {"kind": "grid_pool", "trained_scales": ["1@8", "4@16", 9, 36]}


@pytest.fixture
def processor(make_processor: MakeProcessor) -> M3Processor:
    return make_processor(grid=(6, 6), nesting=LADDER)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((width, height))


def test_pixels_are_those_of_an_image_processor_of_that_size(processor: M3Processor) -> None:
    seen = processor(images=picture(24, 24), text="<image>", matryoshka_vis_token_scale="4@16")
    own = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    expected = own(picture(24, 24), return_tensors="pt")["pixel_values"]
    assert torch.equal(seen["pixel_values"], expected)
    assert seen["image_scales"].tolist() == [4]
    assert seen["tile_tokens"].tolist() == [16]
    assert seen["image_resolutions"].tolist() == [16]
    assert seen["input_ids"].tolist()[0].count(processor.image_token_id) == 4


def test_crops_of_clip_follow(tokenizer: Any) -> None:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    processor = M3Processor(image_processor, tokenizer, grid=(6, 6), nesting=LADDER)
    seen = processor(images=picture(), text="<image>", matryoshka_vis_token_scale="1@8")
    assert seen["pixel_values"].shape == (1, 3, 8, 8)


def test_a_mixed_call_pads_the_small_tiles(processor: M3Processor) -> None:
    seen = processor(
        images=[picture()] * 3, text="<image>" * 3, matryoshka_vis_token_scale=["1@8", 36, "4@16"]
    )
    assert seen["pixel_values"].shape == (3, 3, 24, 24)
    assert seen["pixel_mask"].sum((1, 2)).tolist() == [64, 576, 256]
    assert seen["tile_tokens"].tolist() == [4, 0, 16]
    assert seen["image_resolutions"].tolist() == [8, 0, 16]


def test_the_largest_resolution_has_no_name(processor: M3Processor) -> None:
    assert processor.budget("36@24") == Budget(36)
    named, plain = (
        processor(images=picture(), text="<image>", matryoshka_vis_token_scale=scale)
        for scale in ("36@24", 36)
    )
    assert named.keys() == plain.keys()
    assert "tile_tokens" not in plain


def test_one_budget_by_two_names_is_trained_once(make_processor: MakeProcessor) -> None:
    processor = make_processor(grid=(6, 6), nesting=LADDER)
    processor.train_at(["36@24", 36, "4@16"])
    assert processor.trained_scales == ["4@16", 36]


def test_nothing_said_is_the_largest_trained(
    processor: M3Processor, make_processor: MakeProcessor
) -> None:
    assert processor(images=picture(), text="<image>")["image_scales"].tolist() == [36]
    low = make_processor(
        grid=(6, 6), nesting={"kind": "grid_pool", "trained_scales": ["1@8", "4@16"]}
    )
    seen = low(images=picture(), text="<image>")
    assert (seen["image_scales"].tolist(), seen["image_resolutions"].tolist()) == ([4], [16])


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("9@16", "scale 9 cannot be reached exactly from a 4x4 grid; choose one of 1, 4, 16"),
        ("4@10", "resolution 10: .* choose a multiple of 4 pixels"),
        ("4@48", "resolution 48 is more than this model sees: at most 24"),
        ("4@x", "no visual budget"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_the_choices(
    scale: str, message: str, processor: M3Processor
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(images="absent.png", text="<image>", matryoshka_vis_token_scale=scale)


def test_counts_are_known_before_pixels(processor: M3Processor) -> None:
    assert processor.count_tokens([(30, 40)] * 3, ["1@8", "4@16", 36]) == [1, 4, 36]
    planned = processor._get_num_multimodal_tokens([[30, 40]], "4@16")
    assert planned["num_image_tokens"] == [4]


def test_a_processor_with_a_ladder_is_saved_and_loaded(
    processor: M3Processor, tmp_path: Any
) -> None:
    processor.save_pretrained(tmp_path)
    assert M3Processor.from_pretrained(tmp_path).trained_scales == ["1@8", "4@16", 9, 36]
