"""transformers' LLaVA-NeXT, dense and with experts: equal pixels, placeholders and logits, there
and back.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import make_tokenizer
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_config
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from m3.checkpoints.convert import convert
from m3.checkpoints.formats import recognise
from m3.model import M3ForConditionalGeneration
from m3.nesting.tiling import UNPAD_ROUNDINGS

PINPOINTS = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{{ '<image>' if part.type == "
    "'image' else part.text }}"
    "{% endfor %}{% endfor %}"
)
SIZES = {
    "square": (80, 80),
    "small square": (13, 13),
    "tall": (140, 37),
    "wide": (31, 77),
    "rounded": (55, 88),
}


def make_llava_next(folder: Path, decoder: str) -> LlavaNextForConditionalGeneration:
    """A random checkpoint written by transformers itself."""
    ours = make_config(decoder, "clip_vision_model")
    config = LlavaNextConfig(
        vision_config=ours.vision_config.to_dict(),
        text_config=ours.text_config.to_dict(),
        image_token_index=3,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 48},
        crop_size={"height": 48, "width": 48},
        image_grid_pinpoints=PINPOINTS,
    )
    tokenizer = make_tokenizer(96, "<image>")
    tokenizer.pad_token = "<unk>"
    processor = LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' own checkpoint, ours, and transformers' again."""
    folder = tmp_path_factory.mktemp(request.param)
    make_llava_next(folder / "source", request.param)
    assert recognise(folder / "source") == "llava-next-hf"
    convert(folder / "source", folder / "native")
    convert(folder / "native", folder / "back", to="llava-next-hf")
    return folder


def test_logits_are_equal_there_and_back(folder: Path) -> None:
    """Each shape alone, and all in one batch of two rows.

    Measured: 0 on the same machine; the same kernels run.
    """
    theirs = LlavaNextForConditionalGeneration.from_pretrained(folder / "source").eval()
    back, info = LlavaNextForConditionalGeneration.from_pretrained(
        folder / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = AutoModelForImageTextToText.from_pretrained(folder / "native").eval()
    assert isinstance(ours, M3ForConditionalGeneration)
    readers = [
        AutoProcessor.from_pretrained(folder / name) for name in ("source", "back", "native")
    ]
    pictures = [picture(size) for size in SIZES.values()]
    cases = [([one], ["w5 <image> w6"]) for one in pictures]
    cases.append((pictures, ["w5 <image> w6 <image>", "<image> w7 <image><image> w8"]))
    for images, text in cases:
        given, again = (
            reader(images=images, text=text, return_tensors="pt", padding=True, padding_side="left")
            for reader in readers[:2]
        )
        mine = readers[2](images=images, text=text, matryoshka_vis_token_scale=144)
        seen = torch.cat(
            [tiles[:n] for tiles, n in zip(given["pixel_values"], mine["image_tiles"], strict=True)]
        )
        torch.testing.assert_close(mine["pixel_values"], seen, atol=1e-6, rtol=0)
        assert torch.equal(given["input_ids"], mine["input_ids"])
        assert torch.equal(given["image_sizes"], mine["image_sizes"])
        with torch.no_grad():
            expected = theirs(**given).logits
            real = mine["attention_mask"].bool()
            torch.testing.assert_close(ours(**mine).logits[real], expected[real], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                back.eval()(**again).logits[real], expected[real], atol=1e-6, rtol=0
            )


def test_tensors_are_equal_there_and_back(folder: Path) -> None:
    one, other = (
        LlavaNextForConditionalGeneration.from_pretrained(folder / name).state_dict()
        for name in ("source", "back")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    convert(folder / "back", folder / "again")
    one, other = (load_file(folder / name / "model.safetensors") for name in ("native", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_placeholders_are_counted_from_sizes_alone_as_transformers_counts(folder: Path) -> None:
    theirs, ours = (AutoProcessor.from_pretrained(folder / name) for name in ("source", "native"))
    sizes = [*SIZES.values(), (1, 100), (100, 1), (96, 96), (1000, 999)]
    counts = ours.count_tokens(sizes, 144)
    assert counts == theirs._get_num_multimodal_tokens(sizes)["num_image_tokens"]
    planned = ours._get_num_multimodal_tokens(
        [[*size] for size in sizes], matryoshka_vis_token_scale=144
    )
    assert (planned.num_image_tokens, planned.num_image_patches) == (
        counts,
        [5, 3, 4, 3, 5, 4, 4, 5, 5],
    )


def test_what_the_other_formats_cannot_hold(folder: Path, tmp_path: Path) -> None:
    assert tuple(UNPAD_ROUNDINGS) == ("truncate", "seven_digits")
    with pytest.raises(ValueError, match="cannot hold the tiling anyres .one tile per image is"):
        convert(folder / "native", tmp_path / "flat", to="llava-hf")
    if "llama" in folder.name:
        with pytest.raises(
            ValueError,
            match="unpad_rounding seven_digits, since its code is truncate .*config.json",
        ):
            convert(folder / "native", tmp_path / "original", to="m3")
