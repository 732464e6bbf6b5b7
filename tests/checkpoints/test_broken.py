"""Broken checkpoints: each has its message, and nothing is written."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_tools import make_llava
from safetensors.torch import load_file, save_file

from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.places import find
from m3.cli import main
from m3.files import atomic_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CopyOf = Callable[[], Path]


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensors(folder: Path, drop: str | None = None, **add: torch.Tensor) -> None:
    tensors = load_file(folder / WEIGHTS)
    if drop is not None:
        del tensors[drop]
    save_file(tensors | add, folder / WEIGHTS)


def only_pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def shard_elsewhere(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))


def cut_short(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(100_000)


def in_two_shards(folder: Path, **changes: str) -> None:
    """`lm_head.weight` alone in `b`, and a stale one beside the rest in `c`, which the index
    does not name it in.
    """
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    save_file(head, folder / "b.safetensors")
    save_file(
        tensors | {name: tensor * 0 for name, tensor in head.items()}, folder / "c.safetensors"
    )
    place = dict.fromkeys(tensors, "c.safetensors") | dict.fromkeys(head, "b.safetensors") | changes
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))


def write_index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(text)


def lora_adapter(weights: str) -> Callable[[Path], object]:
    """What LLaVA's finetune_lora.sh leaves behind."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / weights)
        (folder / "non_lora_trainables.bin").write_bytes(b"")
        (folder / "adapter_config.json").write_text(
            '{"base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}'
        )

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled weights only": (
        only_pickled,
        r"has pickled weights only \(pytorch_model.bin\).*give --allow-pickle.*weights_only=True",
    ),
    "LoRA, safetensors": (
        lora_adapter("adapter_model.safetensors"),
        "is a LoRA adapter of lmsys/vicuna-7b-v1.5 .*: merge",
    ),
    "LoRA, pickled": (
        lora_adapter("adapter_model.bin"),
        "is a LoRA adapter of lmsys/vicuna-7b-v1.5 .*: merge",
    ),
    "connector alone": (
        lambda folder: (folder / WEIGHTS).rename(folder / "mm_projector.bin"),
        r"the connector of LLaVA's pre-training alone \(mm_projector.bin\)",
    ),
    "no weights": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "has no weights: expected model.safetensors",
    ),
    "missing shard": (
        shard_missing,
        "1 of the 2 shards that model.safetensors.index.json names are missing: "
        "model-00002-of-00002.safetensors",
    ),
    "shard elsewhere": (
        shard_elsewhere,
        "shards must be files of the same folder, got ../other/model.safetensors",
    ),
    "index is no JSON": (write_index("{"), f"{INDEX}: not an index of shards .JSONDecodeError"),
    "index of nothing": (write_index("{}"), f"{INDEX}: not an index of shards .KeyError"),
    "index of lists": (
        write_index('{"weight_map": ["a"]}'),
        "weight_map must say the file of each tensor",
    ),
    "index that lies": (
        lambda folder: in_two_shards(folder, **{"model.norm.weight": "b.safetensors"}),
        "places 1 tensors in files that do not hold them, such as model.norm.weight in "
        "b.safetensors",
    ),
    "cut short": (
        cut_short,
        r"model.safetensors: damaged or cut short .*100,000 bytes\). Copy or "
        r"download it again",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        "has no config.json, so this is no checkpoint",
    ),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json: not valid JSON",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "config.json: expected a JSON object, got a list",
    ),
    "no model type": (
        lambda folder: (folder / "config.json").write_text("{}"),
        "config.json has model_type None, which no known format has",
    ),
    "other decoder": (
        lambda folder: change_config(folder, model_type="llava_mistral"),
        "model_type is 'llava_mistral'; this format is read with 'llava_llama' or 'llava' only",
    ),
    "no tower": (
        lambda folder: change_config(folder, mm_vision_tower=None),
        "mm_vision_tower is None; expected a text",
    ),
    "no layer": (
        lambda folder: change_config(folder, mm_vision_select_layer="last"),
        "mm_vision_select_layer is 'last'; expected a whole number",
    ),
    "no pinpoints": (
        lambda folder: change_config(
            folder, image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad"
        ),
        "image_grid_pinpoints is None; image_aspect_ratio anyres is read with pairs such as",
    ),
    "pinpoints in words": (
        lambda folder: change_config(
            folder,
            image_aspect_ratio="anyres",
            mm_patch_merge_type="flat",
            image_grid_pinpoints="(1x1)",
        ),
        r"image_grid_pinpoints is '\(1x1\)'; image_aspect_ratio anyres is read with pairs",
    ),
    "unknown model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
        "config.json has model_type 'gpt2', which no known format has .*m3 assemble",
    ),
    "unknown tower": (
        lambda folder: change_config(folder, mm_vision_tower="some/tower"),
        "names the vision tower 'some/tower', which is neither .* Give its folder with "
        "--vision-tower",
    ),
    "other projector": (
        lambda folder: change_config(folder, mm_projector_type="mlp3x_gelu"),
        "mm_projector_type is 'mlp3x_gelu'; this format is read with 'mlp2x_gelu' or 'linear' only",
    ),
    "image marks": (
        lambda folder: change_config(folder, mm_use_im_start_end=True),
        "mm_use_im_start_end is True; this format is read with False only",
    ),
    "small vocabulary": (
        lambda folder: change_config(folder, vocab_size=90),
        "the tokenizer has ids up to 95, but the model has embeddings for 90 tokens",
    ),
    "unreachable scale": (
        lambda folder: change_config(folder, matryoshka_vis_token_scale=[576, 100]),
        "scale 100 cannot be reached exactly from a 24x24 grid",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_has_its_message(
    name: str, copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path
) -> None:
    source = copy_of_flat()
    damage, message = BROKEN[name]
    damage(source)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        convert(source, tmp_path / "dest", options=Options(tokenizer=tokenizer_96))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


MISMATCHES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (
        lambda folder: change_tensors(folder, drop="model.layers.1.mlp.up_proj.weight"),
        "1 missing: model.language_model.layers.1.mlp.up_proj.weight",
    ),
    "unexpected": (
        lambda folder: change_tensors(folder, **{"model.extra": torch.ones(2)}),
        "1 unexpected: model.extra",
    ),
    "whole numbers": (
        lambda folder: change_tensors(
            folder, "lm_head.weight", **{"lm_head.weight": torch.ones(96, 32, dtype=torch.int8)}
        ),
        r"1 of whole numbers \(quantised weights are not read\): lm_head.weight torch.int8",
    ),
    "unexpected inside the decoder": (
        lambda folder: change_tensors(
            folder, **{"model.layers.2.mlp.up_proj.weight": torch.ones(2)}
        ),
        "1 unexpected: model.language_model.layers.2.mlp.up_proj.weight",
    ),
    "other shape": (
        lambda folder: change_config(folder, intermediate_size=60),
        r"model.language_model.layers.0.mlp.down_proj.weight \[32, 64\], expected \[32, 60\]",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_tensors_that_do_not_fit_are_listed_and_the_code_is_1(
    name: str,
    copy_of_flat: CopyOf,
    tokenizer_96: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = copy_of_flat()
    damage, message = MISMATCHES[name]
    damage(source)
    assert (
        main(["convert", str(source), str(tmp_path / "dest"), "--tokenizer", str(tokenizer_96)])
        == 1
    )
    shown = capsys.readouterr().err
    assert re.search(message, shown) and "Nothing was written" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_weights_that_are_not_finite_are_told(
    copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = copy_of_flat()
    change_tensors(source, **{"lm_head.weight": torch.full((96, 32), torch.nan)})
    with caplog.at_level(logging.WARNING, logger="m3"):
        convert(source, tmp_path / "dest", options=Options(tokenizer=tokenizer_96))
    assert "1 tensors hold values that are not finite (lm_head.weight)" in caplog.text


def test_a_tensor_in_two_files_is_read_where_the_index_says(
    copy_of_flat: CopyOf, flat: Path, tokenizer_96: Path, tmp_path: Path
) -> None:
    source = copy_of_flat()
    in_two_shards(source)
    convert(source, tmp_path / "dest", options=Options(tokenizer=tokenizer_96))
    name = "lm_head.weight"
    assert torch.equal(
        load_file(tmp_path / "dest" / WEIGHTS)[name], load_file(flat / WEIGHTS)[name]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard-gb", "0"], "--shard-gb 0: expected more than 0"),
        (["--shard-gb", "nan"], "--shard-gb nan: expected more than 0"),
        (["--chat-template", "."], "Is a directory: '.'"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str],
    message: str,
    copy_of_flat: CopyOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", str(copy_of_flat()), str(tmp_path / "dest"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_a_tokenizer_one_is_asked_for(copy_of_flat: CopyOf, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"has no tokenizer \(.*\); name its folder with "
        r"--tokenizer",
    ):
        convert(copy_of_flat(), tmp_path / "dest")


def test_what_is_there_is_never_overwritten(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already. Nothing is overwritten"):
        convert(flat, tmp_path, to="m3")


def test_a_source_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no-such-owner/no-such-model",):
        with pytest.raises(
            ValueError, match="is neither a folder nor a repository that can be had"
        ):
            find(name)


def test_what_a_format_cannot_hold_is_said(
    tmp_path: Path, tiny_checkpoint: Callable[[Path], Path]
) -> None:
    model = tiny_checkpoint(tmp_path / "model")  # SigLIP's last output and an Aria decoder
    with pytest.raises(
        ValueError,
        match=r"format m3 cannot hold a decoder of type aria_text .* of "
        r"type siglip_vision",
    ):
        convert(model, tmp_path / "dest", to="m3")
    with pytest.raises(
        ValueError, match="format llava-hf cannot hold an encoder's last, normalised output"
    ):
        convert(model, tmp_path / "dest", to="llava-hf")
    with pytest.raises(
        ValueError, match="is a native checkpoint and has its vision tower, tokenizer"
    ):
        convert(model, tmp_path / "dest", options=Options(tokenizer=model))


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    make_llava(tmp_path / "source", "qwen3_moe")
    change_tensors(
        tmp_path / "source", drop="language_model.model.layers.1.mlp.experts.2.gate_proj.weight"
    )
    with pytest.raises(
        ValueError,
        match=r"cannot be put together.*experts have different numbers "
        r"of tensors.*3.*4",
    ):
        convert(tmp_path / "source", tmp_path / "dest")


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "dest") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from m3.checkpoints import convert as module, streaming
from m3.checkpoints.base import Options

source, dest, tokenizer, mark = map(Path, sys.argv[1:])
save = streaming.save_shard

def slow(tensors, file):
    save(tensors, file)
    mark.touch()
    time.sleep(600)

streaming.save_shard = slow
module.convert(source, dest, options=Options(tokenizer=tokenizer), shard_bytes=20_000)
"""


def test_killed_on_the_way_there_is_no_half_folder(
    copy_of_flat: CopyOf, tokenizer_96: Path, tmp_path: Path
) -> None:
    """kill -9 behind the first of several shards; the same command then does the whole."""
    source, dest, mark = copy_of_flat(), tmp_path / "dest", tmp_path / "mark"
    arguments = [str(path) for path in (source, dest, tokenizer_96, mark)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stderr=subprocess.DEVNULL
    )
    while not mark.exists() and process.poll() is None:
        time.sleep(0.05)
    with pytest.raises(
        ValueError,
        match=f"{dest} is being written by another process; wait for it, or give another",
    ):
        convert(source, dest, options=Options(tokenizer=tokenizer_96))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not dest.exists()
    assert [file.name for file in tmp_path.glob(".dest.unfinished/*.safetensors")] != []
    convert(source, dest, options=Options(tokenizer=tokenizer_96), shard_bytes=20_000)
    assert len(list(dest.glob("model-*.safetensors"))) > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "mark", "source"]
