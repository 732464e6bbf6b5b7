"""Values of a foreign config.json that are wrong: one sentence with the file and the key; folders
and files that need a notice get one.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_tools import make_llava
from safetensors.torch import load_file, save_file

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.streaming import MismatchError
from m3.cli import main

CopyOf = Callable[[], Path]
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    make_llava(folder, "llama")
    return folder


def changed(source: Path, folder: Path, changes: dict[str, object]) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


HUB: tuple[tuple[dict[str, object], str], ...] = (
    ({"matryoshka_vis_token_scale": 9}, "matryoshka_vis_token_scale: expected a list"),
    ({"matryoshka_vis_token_scale": "1,9"}, "matryoshka_vis_token_scale: expected a list"),
    ({"new_token_ids": "x"}, "new_token_ids: expected a list"),
    ({"text_config": "x"}, "text_config: expected a mapping or null, got 'x'"),
    ({"vision_config": 3}, "vision_config: expected a mapping or null, got 3"),
    (
        {"vision_feature_select_strategy": "banana"},
        "vision_feature_select_strategy: expected one of ('default', 'full'), got banana",
    ),
    ({"image_token_index": "a"}, "image_token_index: expected a whole number, got 'a'"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, got 'yes'"),
    ({"projector_hidden_act": "gelo"}, "projector_hidden_act: no activation 'gelo'. Did you mean"),
    ({"dtype": "float23"}, "dtype: expected one of 'float32', 'bfloat16'"),
    ({"vision_feature_layer": -99}, "hidden state -99, but the vision encoder has"),
)
ORIGINAL: tuple[tuple[dict[str, object], str], ...] = (
    ({"matryoshka_vis_token_scale": 9}, "matryoshka_vis_token_scale: expected a list"),
    ({"hidden_size": "x"}, "hidden_size: expected a whole number, got 'x'"),
    ({"num_hidden_layers": None}, "num_hidden_layers: expected a whole number, got null"),
    ({"rope_scaling": 3}, "rope_scaling: expected a mapping"),
    ({"torch_dtype": "float99"}, "torch_dtype: expected one of 'float32'"),
    ({"hidden_act": "sillu"}, "hidden_act: no activation 'sillu'. Did you mean 'silu'?"),
    ({"num_attention_heads": 7}, "The hidden size (32) is not a multiple of"),
    ({"mm_vision_select_layer": 9}, "hidden state 9, but the vision encoder has 3 layers"),
)


@pytest.mark.parametrize(("changes", "sentence"), HUB)
def test_a_wrong_value_of_a_hub_checkpoint_is_one_sentence(
    changes: dict[str, object],
    sentence: str,
    hub: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = changed(hub, tmp_path / "source", changes)
    assert main(["convert", str(source), str(tmp_path / "dest")]) == 2
    shown = capsys.readouterr().err.strip()
    assert f"m3 convert: {source / 'config.json'}: " in shown and sentence in shown
    assert "Traceback" not in shown and shown.count("\n") == 0


@pytest.mark.parametrize(("changes", "sentence"), ORIGINAL)
def test_a_wrong_value_of_an_original_checkpoint_is_one_sentence(
    changes: dict[str, object],
    sentence: str,
    copy_of_flat: CopyOf,
    tokenizer_96: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = changed(copy_of_flat(), tmp_path / "changed", changes)
    arguments = [str(source), str(tmp_path / "dest"), "--tokenizer", str(tokenizer_96)]
    assert main(["convert", *arguments]) == 2
    shown = capsys.readouterr().err.strip()
    assert f"m3 convert: {source / 'config.json'}: " in shown and sentence in shown
    assert "Traceback" not in shown and shown.count("\n") == 0


@pytest.mark.parametrize("form", ["auto", "m3"])
def test_a_folder_of_vila_is_called_one(form: str, copy_of_flat: CopyOf, tmp_path: Path) -> None:
    source = changed(copy_of_flat(), tmp_path / "vila", {"llm_cfg": "./llm"})
    with pytest.raises(ValueError, match="is a VILA checkpoint .*`m3 assemble DEST --vision"):
        convert(source, tmp_path / "dest", form)


def test_an_equal_head_of_tied_embeddings_is_taken(tmp_path: Path) -> None:
    make_llava(tmp_path / "source", "llama", tied=True)
    weights = tmp_path / "source" / "model.safetensors"
    tensors = load_file(weights)
    assert HEAD not in tensors
    convert(tmp_path / "source", tmp_path / "without")
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, weights)
    convert(tmp_path / "source", tmp_path / "with")
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert ours.keys() == plain.keys() and "lm_head.weight" not in ours
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    save_file(tensors | {HEAD: tensors[EMBEDDING] + 1}, weights)
    with pytest.raises(MismatchError, match="says tie_word_embeddings, but lm_head.weight differs"):
        convert(tmp_path / "source", tmp_path / "other")


def test_other_pixels_than_the_sources_are_told(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="m3"):
        convert(hub, tmp_path / "dest")
    assert "crops the middle of an image; here the whole image is padded" in caplog.text


def test_a_tower_beside_the_one_inside_is_told(
    copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_of_flat()
    name = json.loads((source / "config.json").read_text())["mm_vision_tower"]
    options = Options(tokenizer=tokenizer_96, vision_tower=source / name)
    with caplog.at_level(logging.WARNING, logger="m3"):
        convert(source, tmp_path / "dest", options=options)
    assert "contains its vision tower: its weights are kept" in caplog.text
