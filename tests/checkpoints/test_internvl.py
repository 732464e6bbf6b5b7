"""transformers' InternVL: equal pixels, placeholders and logits, there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import make_tokenizer
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_config, spans
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.formats import recognise
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor

MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEMPLATE = (  # as OpenGVLab/InternVL3-*-hf have it
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
SIDE, TOKENS = 48, 36
SIZES = [(80, 80), (13, 13), (140, 37), (31, 77), (47, 48)]


def make_internvl(folder: Path, decoder: str, layer: int, mean_pooling: bool) -> None:
    """A random checkpoint written by transformers, with the files of a published one."""
    config = InternVLConfig(
        vision_config={
            **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "image_size": SIDE, "patch_size": 4},
            **{"use_mean_pooling": mean_pooling},
        },
        text_config=make_config(decoder).text_config.to_dict(),
        image_token_id=3,
        image_seq_length=TOKENS,
        vision_feature_layer=layer,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=6
    ).save_pretrained(folder)
    chatml = ("<|im_start|>", "<|im_end|>")
    words = make_tokenizer(96, "<IMG_CONTEXT>", "<img>", "</img>", "<video>", *chatml)
    PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
        extra_special_tokens=MARKS,
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


CASES = {"llama": (-1, True), "qwen3_moe": (-2, False)}


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' own checkpoint, ours, and transformers' again."""
    folder = tmp_path_factory.mktemp(request.param)
    make_internvl(folder / "source", request.param, *CASES[request.param])
    assert recognise(folder / "source") == "internvl"
    convert(folder / "source", folder / "native")
    convert(folder / "native", folder / "back", to="internvl")
    return folder


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))


def published_inputs(folder: Path, images: list[Image.Image], text: str) -> dict[str, torch.Tensor]:
    """What `InternVLProcessor` does, which cannot be made without torchvision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    prepared = image_processor(images, crop_to_patches=True, return_tensors="pt")
    first, *rest = text.split("<IMG_CONTEXT>")
    for tiles, part in zip(prepared["num_patches"].tolist(), rest, strict=True):
        first += f"<img>{'<IMG_CONTEXT>' * TOKENS * tiles}</img>{part}"
    ids = tokenizer(first, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return {"input_ids": ids, "pixel_values": prepared["pixel_values"]}


def question(images: int) -> list[dict]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": "w5 w6"}]
    return [{"role": "user", "content": parts}]


def test_logits_are_equal_there_and_back(folder: Path) -> None:
    """Each shape alone, and all in one prompt. Measured: 0 on the same machine."""
    theirs = InternVLForConditionalGeneration.from_pretrained(folder / "source").eval()
    back, info = InternVLForConditionalGeneration.from_pretrained(
        folder / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = AutoModelForImageTextToText.from_pretrained(folder / "native").eval()
    processor = AutoProcessor.from_pretrained(folder / "native")
    assert isinstance(ours, M3ForConditionalGeneration) and isinstance(processor, M3Processor)
    pictures = [picture(size) for size in SIZES]
    for images in [*([one] for one in pictures), pictures]:
        for source in ("source", "back"):
            tokenizer = AutoTokenizer.from_pretrained(folder / source)
            published = tokenizer.apply_chat_template(
                question(len(images)), add_generation_prompt=True, tokenize=False
            )
            given = published_inputs(folder / source, images, published)
            text = processor.apply_chat_template(
                question(len(images)), add_generation_prompt=True, tokenize=False
            )
            mine = processor(images=images, text=text, matryoshka_vis_token_scale=TOKENS)
            assert torch.equal(given["input_ids"], mine["input_ids"])
            torch.testing.assert_close(
                mine["pixel_values"], given["pixel_values"], atol=1e-6, rtol=0
            )
            with torch.no_grad():
                expected = theirs(**given).logits
                torch.testing.assert_close(ours(**mine).logits, expected, atol=1e-5, rtol=0)
                again = back.eval()(**given).logits
            torch.testing.assert_close(again, expected, atol=1e-6, rtol=0)


def test_tensors_are_equal_there_and_back(folder: Path) -> None:
    one, other = (
        InternVLForConditionalGeneration.from_pretrained(folder / name).state_dict()
        for name in ("source", "back")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    convert(folder / "back", folder / "again")
    one, other = (load_file(folder / name / "model.safetensors") for name in ("native", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    configs = [
        json.loads((folder / name / "config.json").read_text()) for name in ("native", "again")
    ]
    assert configs[0] == configs[1]
    assert configs[0]["tiling"]["max_tiles"] == 6


def test_it_reads_fewer_tokens_too(folder: Path) -> None:
    ours = AutoModelForImageTextToText.from_pretrained(folder / "native").eval()
    processor = AutoProcessor.from_pretrained(folder / "native")
    batch = processor(
        images=[picture(SIZES[0]), picture(SIZES[1])],
        text="<IMG_CONTEXT> w5 <IMG_CONTEXT>",
        matryoshka_vis_token_scale=[9, 4],
    )
    assert spans(batch["input_ids"][0].tolist(), 3) == [5 * 9, 4]
    with torch.no_grad():
        assert ours(**batch).logits.isfinite().all()


def test_strings_and_parts_spell_the_same_prompt(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder / "native")
    rendered = [
        processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        for content in (
            "<IMG_CONTEXT>\nw5 w6",
            "<img><IMG_CONTEXT></img>\nw5 w6",
            question(1)[0]["content"],
        )
    ]
    assert (
        rendered
        == ["<|im_start|>user\n<img><IMG_CONTEXT></img>\nw5 w6<|im_end|>\n<|im_start|>assistant\n"]
        * 3
    )


def test_what_the_format_cannot_hold(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold the tiling internvl|the connector pixel_sh"):
        convert(folder / "native", tmp_path / "no", to="llava-hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    assert tokenizer.special_tokens_map["start_image_token"] == "<img>"
    make_tokenizer(96, "<IMG_CONTEXT>").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="names start_image_token and end_image_token"):
        convert(folder / "source", tmp_path / "no", options=Options(tokenizer=tmp_path / "plain"))
