"""The original M3 format against what the original implementation computed, and there and back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import ids_of
from numpy.lib.npyio import NpzFile
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
)

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.formats.clip import KNOWN_TOWERS, clip_preprocessing
from m3.data.multiscale import expand
from m3.data.tokenized import Tokenized
from m3.model import ImageInputs, M3ForConditionalGeneration
from m3.nesting import Tiles
from m3.processing import M3Processor, expand_image_tokens
from m3.processing.chat_template import chatml_template

FLAT = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"
SCALES = (1, 4, 9, 16, 36, 64, 144, 576)
CopyOf = Callable[[], Path]


@pytest.fixture(scope="module")
def reference() -> NpzFile:
    return np.load(FLAT / "reference.npz")


@pytest.fixture(scope="module")
def model(flat: Path) -> M3ForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(flat).eval()


@pytest.fixture(scope="module")
def processor(flat: Path) -> M3Processor:
    return AutoProcessor.from_pretrained(flat)


@pytest.mark.parametrize("scale", SCALES)
def test_embeddings_and_logits_equal_the_originals_at_every_scale(
    scale: int, model: M3ForConditionalGeneration, processor: M3Processor, reference: NpzFile
) -> None:
    """From the image file through our own preprocessing.

    Measured: pixels 0, embeddings 3e-7, logits 3e-7 (float32).
    """
    pixel_values = processor(images=FLAT / "image.png", text=processor.image_token)["pixel_values"]
    np.testing.assert_allclose(pixel_values, reference["pixel_values"], atol=1e-5, rtol=0)
    ids = torch.tensor(
        [
            expand_image_tokens(
                ids_of(reference, processor.image_token_id), processor.image_token_id, [scale]
            )
        ]
    )
    scales = torch.tensor([scale])
    with torch.no_grad():
        images = ImageInputs(pixel_values=pixel_values, image_scales=scales)
        embeds = model.model.embed(ids, images, images.spans(model.config.reader))
        logits = model(input_ids=ids, pixel_values=pixel_values, image_scales=scales).logits
    np.testing.assert_allclose(embeds, reference[f"embeds_{scale}"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits, reference[f"logits_{scale}"], atol=1e-5, rtol=0)


def test_the_packed_training_loss_is_the_originals(
    model: M3ForConditionalGeneration, processor: M3Processor, reference: NpzFile
) -> None:
    """All five trained scales in one row; the original ran five passes and averaged.

    Measured difference: 2e-7.
    """
    ids = ids_of(reference, processor.image_token_id)
    mask = (reference["train_labels"][0] != -100).tolist()
    sequences = expand(Tokenized(ids, mask, 1), processor.ladder, processor, {None: [Tiles()]})
    assert [sequence.scales for sequence in sequences] == [(1,), (9,), (36,), (144,), (576,)]
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
        loss = model(
            **batch,
            pixel_values=torch.from_numpy(reference["pixel_values"]),
            image_scales=torch.tensor(processor.trained_scales),
            image_index=torch.zeros(len(sequences), dtype=torch.int64),
        ).loss
    assert abs(loss.item() - float(reference["train_loss"])) < 1e-5


def test_there_and_back_is_byte_equal(flat: Path, tmp_path: Path, tokenizer_96: Path) -> None:
    convert(flat, tmp_path / "back", to="m3")
    ours, theirs = (
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(FLAT / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype
        for name in theirs
    )
    config, original = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", FLAT)
    )
    differing = {
        key for key in original.keys() | config.keys() if original.get(key) != config.get(key)
    }
    assert differing == {"transformers_version"}
    convert(tmp_path / "back", tmp_path / "again", options=Options(tokenizer=tokenizer_96))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).stat().st_size > 0
    again, native = (
        load_file(tmp_path / "again" / "model.safetensors"),
        load_file(flat / "model.safetensors"),
    )
    assert again.keys() == native.keys() and all(
        torch.equal(again[name], native[name]) for name in native
    )


def test_a_chat_format_of_its_own_comes_back(
    flat: Path, tmp_path: Path, processor: M3Processor
) -> None:
    own = chatml_template("<image>")
    changed = M3Processor.from_pretrained(flat, chat_template=own)
    shutil.copytree(flat, tmp_path / "own")
    changed.save_pretrained(tmp_path / "own")
    for source, name, template in (
        (tmp_path / "own", "own", own),
        (flat, "flat", processor.chat_template),
    ):
        convert(source, tmp_path / f"{name}_m3", to="m3")
        convert(tmp_path / f"{name}_m3", tmp_path / f"{name}_again")
        assert M3Processor.from_pretrained(tmp_path / f"{name}_again").chat_template == template
    words_alone = "{% for message in messages %}{{ message.role }}{% endfor %}"
    (tmp_path / "own_m3" / "chat_template.jinja").write_text(words_alone)
    with pytest.raises(
        ValueError,
        match=r"chat_template.jinja loses the image of a message "
        r".*--chat-template FILE",
    ):
        convert(tmp_path / "own_m3", tmp_path / "lost")
    convert(tmp_path / "own_m3", tmp_path / "given", options=Options(chat_template=own))
    assert M3Processor.from_pretrained(tmp_path / "given").chat_template == own


def test_what_a_checkpoint_may_carry_along_is_dropped(
    copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path
) -> None:
    source = copy_of_flat()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(
        577
    )
    save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "native", options=Options(tokenizer=tokenizer_96))
    assert len(load_file(tmp_path / "native" / "model.safetensors")) == len(tensors) - 2


def test_plain_llava_was_trained_at_one_scale(
    copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path
) -> None:
    source = copy_of_flat()
    config = json.loads((source / "config.json").read_text())
    del config["matryoshka_vis_token_scale"]
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "native", options=Options(tokenizer=tokenizer_96))
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    assert processor.trained_scales == [576]
    assert processor.reachable_scales == SCALES


@pytest.mark.parametrize(
    "whole", [True, False], ids=["CLIP with its text encoder", "vision encoder alone"]
)
def test_a_tower_from_outside(
    whole: bool, copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path, flat: Path
) -> None:
    """The tower's tensors are taken out and given as a CLIP folder instead: the result is the
    same.
    """
    source, tower = copy_of_flat(), tmp_path / "tower"
    inside, prefix = {}, "model.vision_tower.vision_tower."
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.startswith(prefix)]:
        inside[name.removeprefix(prefix)] = tensors.pop(name)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="does not contain its vision tower .* --vision-tower DIR"):
        convert(source, tmp_path / "native", options=Options(tokenizer=tokenizer_96))
    shutil.copytree(FLAT / "vision_tower_src", tower)
    if whole:
        vision = CLIPVisionConfig.from_pretrained(tower)
        text = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        clip = CLIPModel(
            CLIPConfig(vision_config=vision.to_dict(), text_config={**text, "vocab_size": 10})
        )
        clip.config.save_pretrained(tower)
        inside |= {
            name: tensor
            for name, tensor in clip.state_dict().items()
            if not name.startswith("vision_model")
        }
    save_file(inside, tower / "model.safetensors")
    convert(
        source, tmp_path / "native", options=Options(tokenizer=tokenizer_96, vision_tower=tower)
    )
    ours, theirs = (
        load_file(tmp_path / "native" / "model.safetensors"),
        load_file(flat / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )


@pytest.mark.parametrize("name", KNOWN_TOWERS)
def test_towers_known_by_name_are_whole(name: str) -> None:
    """Against transformers' own defaults for this architecture: ViT-L/14 has 24 layers of width
    1024.
    """
    config = CLIPVisionConfig(**KNOWN_TOWERS[name])
    assert (config.image_size // config.patch_size) ** 2 == {336: 576, 224: 256}[config.image_size]
    assert config.num_hidden_layers == 24 and config.hidden_size == 1024
    settings = json.loads((FLAT / "vision_tower_src" / "preprocessor_config.json").read_text())
    expected = clip_preprocessing(336)
    assert {key: settings[key] for key in expected} == expected


def test_the_prompt_is_vicunas(processor: M3Processor) -> None:
    """Word for word `conv_vicuna_v1.get_prompt()` of the original."""
    messages = [
        {"role": "user", "content": "<image>\nw4"},
        {"role": "assistant", "content": "w5"},
        {"role": "user", "content": [{"type": "text", "text": "w6"}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nw4 ASSISTANT: "
        "w5</s>USER: w6 ASSISTANT:"
    )


def test_a_converted_checkpoint_answers(
    model: M3ForConditionalGeneration, processor: M3Processor
) -> None:
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nw4"}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(
        images=[FLAT / "image.png"] * 2, text=[prompt] * 2, matryoshka_vis_token_scale=[9, 36]
    )
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert (answer[:, -3:] < 96).all(), "the placeholder has no logit"
