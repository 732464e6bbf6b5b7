"""Loading: plain, quantised in every way of the table, with an adapter; and everything that must
be refused.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import MOE, make_config
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForImageTextToText

from m3 import optional as packages
from m3.inference.loading import load
from m3.inference.quantisation import QUANTISATIONS, unquantised_modules, weight_bytes
from m3.model import M3ForConditionalGeneration
from m3.model.anatomy import fused_experts
from m3.processing import M3Processor


def logits(model: M3ForConditionalGeneration, processor: M3Processor) -> torch.Tensor:
    """Of one prompt with a picture, at 9 tokens."""
    from PIL import Image

    picture = Image.linear_gradient("L").convert("RGB")
    inputs = processor(images=picture, text="<image>\nwhat is it", matryoshka_vis_token_scale=9)
    with torch.no_grad():
        return model(**inputs.to(model.device)).logits.float()


@pytest.mark.parametrize(
    "options", [{}, {"device": "cpu"}, {"device_map": "auto"}, {"dtype": "bfloat16"}], ids=str
)
def test_a_plain_load_is_what_transformers_loads(checkpoint: Path, options: dict[str, str]) -> None:
    model, processor = load(checkpoint, **options)
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=model.dtype).eval()
    assert not model.training
    assert model.dtype == (torch.bfloat16 if "dtype" in options else torch.float32)
    assert torch.equal(logits(model, processor), logits(plain, processor))


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_a_quantised_model_answers_and_keeps_what_must_be_kept(checkpoint: Path, name: str) -> None:
    # torchao is not pinned: transformers imports it always, noisily
    pytest.importorskip(QUANTISATIONS[name].package)
    model, processor = load(checkpoint, device="cpu", quantise=name)
    plain, _ = load(checkpoint, device="cpu", dtype=str(model.dtype).removeprefix("torch."))
    kept = unquantised_modules(model.config)
    for part in kept:
        weights = list(model.get_submodule(part).parameters())
        assert bool(weights) == (part != "model.reducer")  # grid_pool has no weights
        assert all(
            type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights
        ), part
    linear = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    packed = {
        n
        for n, m in linear.items()
        if type(m) is not nn.Linear or type(m.weight) is not nn.Parameter
    }
    assert packed == {path for path in linear if not path.startswith(tuple(kept))}, (
        "the decoder's own linear layers"
    )
    assert len(packed) == 2 * (4 + 3)  # two layers: attention, shared experts
    experts = len(fused_experts(plain.model.language_model))
    assert experts == 2 * 2
    assert len(fused_experts(model.model.language_model)) == (0 if name == "bnb-4bit" else experts)
    assert weight_bytes(model) < weight_bytes(plain)
    # measured: 0.99998 (8 bits), 0.998 (4 bits)
    alike = cosine_similarity(
        logits(model, processor).flatten(), logits(plain, processor).flatten(), dim=0
    )
    assert alike > (0.99 if "4" in name else 0.9995)


@pytest.mark.parametrize("decoder", [*MOE, "llama"])
def test_what_is_kept_is_named_for_every_decoder(decoder: str) -> None:
    names = unquantised_modules(make_config(decoder=decoder))
    assert names[:4] == ["model.vision_tower", "model.connector", "model.reducer", "lm_head"]
    assert len(names) == 4 + (2 if decoder in MOE else 0)  # a router per layer


@pytest.fixture(scope="session")
def adapter(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the decoder's attention that changes the logits."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    targets = r"model\.language_model\..*(q_proj|v_proj)"
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_beside_the_weights_and_merged_into_them_agree(
    checkpoint: Path, adapter: Path
) -> None:
    plain, processor = load(checkpoint)
    beside, _ = load(checkpoint, lora=adapter)
    merged, _ = load(checkpoint, lora=adapter, merge=True)
    assert isinstance(beside, M3ForConditionalGeneration)
    assert isinstance(merged, M3ForConditionalGeneration)
    assert {name for name, _ in merged.named_parameters()} == {
        name for name, _ in plain.named_parameters()
    }
    expected = logits(beside, processor)
    assert (expected - logits(plain, processor)).abs().max() > 0.01
    # measured: 1e-6
    torch.testing.assert_close(logits(merged, processor), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_works_on_a_quantised_model(checkpoint: Path, adapter: Path) -> None:
    model, processor = load(checkpoint, device="cpu", quantise="bnb-4bit", lora=adapter)
    plain, _ = load(checkpoint, device="cpu", quantise="bnb-4bit")
    assert (logits(model, processor) - logits(plain, processor)).abs().max() > 0.01


def test_an_adapter_of_another_model_is_refused(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    first = sorted(weights)[0]
    changes = {
        "missing": {name: tensor for name, tensor in weights.items() if name != first},
        "left over": weights | {first.replace("layers.0", "layers.9"): weights[first].clone()},
        "size mismatch": weights | {first: torch.zeros(3, 5)},
    }
    for problem, changed in changes.items():
        folder = shutil.copytree(adapter, tmp_path / problem.replace(" ", "_"))
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"(?s)the adapter does not fit this model.*{problem}"):
            load(checkpoint, lora=folder)


def other_model(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    return folder


def unfinished(folder: Path, checkpoint: Path) -> Path:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, folder / "unfinished")
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_what_is_no_m3_checkpoint_is_refused(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "not an M3 checkpoint, it holds no config.json"),
        (
            adapter,
            "it holds a LoRA adapter: load the model it was trained on, with lora=this folder",
        ),
        (tmp_path / "nowhere", "no such folder"),
        (other_model(tmp_path), "a model of type 'llava_llama', expected 'm3'. `m3 convert`"),
        (
            unfinished(tmp_path, checkpoint),
            "1 weights are missing from the checkpoint, such as lm_head.weight",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load(path)


def change_json(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def add_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors") | {"model.odd": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def wider(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_json(folder, text_config=text | {"vocab_size": text["vocab_size"] + 8})


DAMAGED = {
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 99),
        "the weights are missing, damaged or cut short",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "the weights are missing, damaged or cut short",
    ),
    "left over": (
        add_tensor,
        "1 weights have no place in the model of the checkpoint, such as model.odd",
    ),
    "other shape": (
        wider,
        r"2 weights are of another shape than config.json asks for, such as "
        r"lm_head.weight: \[",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "no number": (
        lambda f: change_json(f, image_token_id="x"),
        "config.json is not a configuration of M3: image_token_id: expected a whole number, got .x.",
    ),
    "no processor": (
        lambda f: (f / "processor_config.json").unlink(),
        "the processor's files are missing or damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_one_sentence(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[name]
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float17"}, "unknown dtype 'float17'. Did you mean 'float16'?"),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"merge": True}, "merge was asked for without an adapter"),
        (
            {"merge": True, "lora": "x", "quantise": "bnb-4bit"},
            "merged into weights of full precision",
        ),
        ({"quantise": "bnb-3bit"}, "unknown quantisation 'bnb-3bit'. Did you mean 'bnb-"),
        (
            {"lora": "nowhere"},
            "no LoRA adapter there: adapter_config.json and adapter_model.safetensors missing",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load(checkpoint, **options)


@pytest.mark.parametrize(
    ("options", "package", "extra"),
    [
        ({"quantise": "bnb-4bit"}, "bitsandbytes", "quantise"),
        ({"quantise": "torchao-int8"}, "torchao", "quantise"),
        ({"lora": "x"}, "peft", "train"),
        ({"device_map": "auto"}, "accelerate", "train"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: dict, package: str, extra: str
) -> None:
    find = packages.importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(
        ModuleNotFoundError,
        match=rf"the package {package}, which is not installed: pip install "
        rf"-e '.\[{extra}\]'",
    ):
        load(checkpoint, **options)
