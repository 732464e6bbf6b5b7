"""Aria's choices for a call: as many placeholders as features at every size, split and scale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_aria import LARGE, LEAST, SMALL, aria_tokenizer
from transformers import SiglipImageProcessorPil

from m3.nesting import Tiles, UnreachableScaleError, take_prefix
from m3.processing import M3Processor
from m3.processing.aria_template import aria_template
from m3.processing.aria_tiles import AriaTileProcessor
from m3.processing.tiles import TileOptions


def reduce_by_prefix(tokens: torch.Tensor, scale: int, grid: object) -> torch.Tensor:
    return take_prefix(tokens, scale)


NESTING = {"kind": "query_prefix", "trained_scales": [1, 8, 128, 256]}


@pytest.fixture(scope="module")
def processor() -> M3Processor:
    images = AriaTileProcessor(LARGE, LEAST, size_tokens=[(SMALL, 128), (LARGE, 256)])
    return M3Processor(
        images,
        aria_tokenizer(),
        grid=256,
        nesting=NESTING,
        tiling={"kind": "tiles"},
        image_token="<|img|>",
        chat_template=aria_template(),
    )


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 200, dtype=np.uint8))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("size", "most"), [(SMALL, 128), (LARGE, 256)])
@pytest.mark.parametrize("shape", [(60, 60), (200, 60), (60, 330)])
def test_placeholders_equal_features(
    shape: tuple[int, int], size: int, most: int, split: bool, processor: M3Processor
) -> None:
    features = None
    for scale in (1, 8, most - 1, most):
        seen = processor(
            images=picture(*shape),
            text="<|img|>?",
            max_image_size=size,
            split_image=split,
            matryoshka_vis_token_scale=scale,
        )
        tiles = Tiles(int(seen["image_tiles"]), None, int(seen["tile_tokens"]))
        assert tiles.tokens == most
        assert len(seen["pixel_values"]) == len(seen["pixel_mask"]) == tiles.number
        assert (tiles.number > 1) == split
        features = torch.zeros(tiles.number, 256, 2) if features is None else features
        (read,) = processor.reader.read_images(features, scale, [tiles], None, reduce_by_prefix)
        placeholders = int((seen["input_ids"] == processor.image_token_id).sum())
        assert len(read) == placeholders == scale * tiles.number
        assert processor.count_tokens([shape[::-1]], scale, size, split) == [placeholders]
        planned = processor._get_num_multimodal_tokens([list(shape[::-1])], scale, size, split)
        assert (planned.num_image_tokens, planned.num_image_patches) == (
            [placeholders],
            [tiles.number],
        )


def test_each_image_has_its_own_size_split_and_largest_scale(processor: M3Processor) -> None:
    seen = processor(
        images=[picture(60, 60), picture(60, 60), picture(100, 40)],
        text="<|img|><|img|><|img|>",
        max_image_size=[SMALL, LARGE, SMALL],
        split_image=[False, False, True],
    )
    assert seen["image_scales"].tolist() == seen["tile_tokens"].tolist() == [128, 256, 128]
    tiles = seen["image_tiles"].tolist()
    assert tiles[:2] == [1, 1] and tiles[2] > 1
    assert int((seen["input_ids"] == processor.image_token_id).sum()) == 128 + 256 + 128 * tiles[2]
    assert seen["pixel_mask"][0].sum() == SMALL**2
    assert seen["pixel_mask"][1].all()


def test_more_tokens_than_a_tile_has_are_refused(processor: M3Processor) -> None:
    assert processor.count_tokens([(60, 60)], 256) == [256]
    with pytest.raises(
        UnreachableScaleError,
        match=r"scale 129 .* set of 128 tokens; choose one "
        r"of 1, \.\.\., 128",
    ):
        processor(
            images=picture(60, 60),
            text="<|img|>",
            max_image_size=SMALL,
            matryoshka_vis_token_scale=129,
        )
    with pytest.raises(UnreachableScaleError, match="scale 257 .* set of 256 tokens"):
        processor(images=picture(60, 60), text="<|img|>", matryoshka_vis_token_scale=257)


def test_wrong_choices_are_refused(processor: M3Processor) -> None:
    with pytest.raises(
        ValueError,
        match=r"max_image_size 980 is none of the sizes this model "
        r"reads: 28, 56",
    ):
        processor(images=picture(60, 60), text="<|img|>", max_image_size=980)
    with pytest.raises(
        ValueError,
        match=r"split_image has 2 entries for 1 images. Give one for all images, or "
        r"one per image",
    ):
        processor(images=picture(60, 60), text="<|img|>", split_image=[True, False])
    other = M3Processor(SiglipImageProcessorPil(), aria_tokenizer())
    with pytest.raises(
        ValueError,
        match="max_image_size and split_image choose .* SiglipImageProcessorPil makes tiles of one",
    ):
        other(images=picture(60, 60), text="<image>", max_image_size=SMALL)


def test_an_outline_opens_a_file_only_to_split_it(processor: M3Processor, tmp_path: Path) -> None:
    absent = tmp_path / "absent.png"
    assert processor.outline(absent) == Tiles(tokens=256)
    with pytest.raises(ValueError, match="no such image file"):
        processor.outline(absent, options=TileOptions(split_image=True))
