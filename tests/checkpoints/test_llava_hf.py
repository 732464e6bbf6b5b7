"""transformers' LLaVA, dense and with experts: equal logits on our side, and equal logits after
going back.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import make_llava
from PIL import Image
from safetensors.torch import load_file
from tiny_models import DECODERS
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from m3.checkpoints.convert import convert
from m3.checkpoints.formats import recognise
from m3.model import M3ForConditionalGeneration


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, *[3] * 144, 7, 8, 9], [1, *[3] * 144, 10, 11, 12, 13]])
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 48, 48, generator=generator)}


def check_there_and_back(model: LlavaForConditionalGeneration, source: Path, folder: Path) -> None:
    native = folder / "native"
    assert recognise(source) == "llava-hf"
    convert(source, native)
    ours = AutoModelForImageTextToText.from_pretrained(native).eval()
    assert isinstance(ours, M3ForConditionalGeneration)
    with torch.no_grad():
        expected = model(**inputs()).logits
        logits = ours(**inputs(), image_scales=torch.tensor([144, 144])).logits
    # Measured: 0 on the same machine and attention; the same kernels run in the same order.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    convert(native, folder / "back", to="llava-hf")
    back, info = LlavaForConditionalGeneration.from_pretrained(
        folder / "back", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(**inputs()).logits, expected, atol=0, rtol=0)
    convert(folder / "back", folder / "again")
    again, first = (load_file(folder / name / "model.safetensors") for name in ("again", "native"))
    assert again.keys() == first.keys() and all(
        torch.equal(again[name], first[name]) for name in first
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_are_equal_there_and_back(decoder: str, tmp_path: Path) -> None:
    check_there_and_back(make_llava(tmp_path / "source", decoder), tmp_path / "source", tmp_path)


def test_tied_embeddings(tmp_path: Path) -> None:
    check_there_and_back(
        make_llava(tmp_path / "source", "llama", tied=True), tmp_path / "source", tmp_path
    )


def test_the_last_hidden_state(tmp_path: Path) -> None:
    check_there_and_back(
        make_llava(tmp_path / "source", "llama", layer=-1), tmp_path / "source", tmp_path
    )


def test_files_with_module_names_are_read_too(tmp_path: Path) -> None:
    """What `save_original_format=False` leaves, and the hub's older `vision_model.` below the
    tower.
    """
    model = make_llava(tmp_path / "hub", "qwen3_moe")
    AutoProcessor.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "modules")
    model.save_pretrained(tmp_path / "modules", save_original_format=False)
    names = [set(load_file(tmp_path / name / "model.safetensors")) for name in ("hub", "modules")]
    assert "language_model.model.layers.0.mlp.experts.0.up_proj.weight" in names[0]
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in names[1]
    for name in ("hub", "modules"):
        convert(tmp_path / name, tmp_path / f"{name}_native")
    one, other = (
        load_file(tmp_path / f"{name}_native" / "model.safetensors") for name in ("hub", "modules")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    convert(tmp_path / "hub_native", tmp_path / "back", to="llava-hf")
    written = set(load_file(tmp_path / "back" / "model.safetensors"))
    assert "vision_tower.vision_model.post_layernorm.weight" in written


def test_a_placeholder_beyond_the_vocabulary_gets_rows(flat: Path, tmp_path: Path) -> None:
    """From the original M3 format to transformers': pixels, logits over the original vocabulary,
    and trained scales.
    """
    convert(flat, tmp_path / "hf", to="llava-hf")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    embedding = theirs.get_input_embeddings().weight
    assert embedding.shape[0] == 97
    far = (embedding - embedding[:96].mean(0)).norm(dim=1)
    assert 0.5 * far[:96].min() < far[96] < 2 * far[:96].max(), (
        "drawn like the others, not their mean, which others may share"
    )
    ours = M3ForConditionalGeneration.from_pretrained(flat).eval()
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    )
    text = "w4 <image> w5 w6"
    given = AutoProcessor.from_pretrained(tmp_path / "hf")(
        images=picture, text=text, return_tensors="pt"
    )
    mine = AutoProcessor.from_pretrained(flat)(images=picture, text=text)
    torch.testing.assert_close(given["pixel_values"], mine["pixel_values"], atol=1e-6, rtol=0)
    torch.testing.assert_close(given["input_ids"], mine["input_ids"])
    with torch.no_grad():
        expected = theirs.eval()(**given).logits
        torch.testing.assert_close(ours(**mine).logits, expected[..., :96], atol=1e-5, rtol=0)
    convert(tmp_path / "hf", tmp_path / "again")
    assert AutoProcessor.from_pretrained(tmp_path / "again").trained_scales == [1, 9, 36, 144, 576]


def test_the_checkpoints_own_chat_format_is_kept(tmp_path: Path) -> None:
    """transformers' template reads lists of parts only; a string, as our data has, is made one."""
    make_llava(tmp_path / "source", "llama")
    convert(tmp_path / "source", tmp_path / "native")
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    expected = "USER: <image>\nw4 ASSISTANT:"
    for content in ("<image>\nw4", [{"type": "image"}, {"type": "text", "text": "w4"}]):
        messages = [{"role": "user", "content": content}]
        assert (
            processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            == expected
        )
