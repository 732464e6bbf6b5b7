"""Pickled weights: refused without --allow-pickle, equal to safetensors with it, and never run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3.cli import main

CopyOf = Callable[[], Path]
WEIGHTS = "model.safetensors"
RAN = "the pickle ran"


def pickle_weights(folder: Path, shards: int, is_zip: bool = True) -> None:
    """As LLaVA's checkpoints are published: shards with an index, and the connector beside."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, index = sorted(tensors), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        chosen = {name: tensors[name] for name in names[number::shards]}
        torch.save(chosen, folder / file, _use_new_zipfile_serialization=is_zip)
        index |= dict.fromkeys(chosen, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    torch.save({"model.mm_projector.0.bias": torch.ones(3)}, folder / "mm_projector.bin")


@pytest.mark.parametrize(("shards", "is_zip"), [(1, True), (2, False)])
def test_pickled_weights_are_converted_on_request(
    shards: int, is_zip: bool, copy_of_flat: CopyOf, flat: Path, tokenizer_96: Path, tmp_path: Path
) -> None:
    source, dest = copy_of_flat(), tmp_path / "dest"
    pickle_weights(source, shards, is_zip)
    files = sorted(source.iterdir())
    arguments = [str(source), str(dest), "--tokenizer", str(tokenizer_96)]
    assert main(["convert", *arguments]) == 2
    assert main(["convert", *arguments, "--allow-pickle"]) == 0
    ours, plain = load_file(dest / WEIGHTS), load_file(flat / WEIGHTS)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert sorted(source.iterdir()) == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "source"]


class Runs:
    """Pickled, a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.mark, RAN))


def a_command(folder: Path) -> None:
    torch.save({"a": Runs(folder.parent / "mark")}, folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    torch.save({"a": torch.ones(9999)}, folder / "pytorch_model.bin")
    with (folder / "pytorch_model.bin").open("r+b") as file:
        file.truncate(5000)


def no_table(folder: Path) -> None:
    torch.save([torch.ones(2)], folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model-1.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


WRONG: tuple[tuple[Callable[[Path], None], str], ...] = (
    (a_command, "pytorch_model.bin holds more than tensors"),
    (cut_short, "pytorch_model.bin is damaged or cut short"),
    (no_table, "pytorch_model.bin is no table of named tensors"),
    (
        shard_missing,
        "1 of the 2 files that pytorch_model.bin.index.json names are missing: pytorch",
    ),
)


@pytest.mark.parametrize(("damage", "sentence"), WRONG)
def test_what_is_no_table_of_tensors_is_refused_and_not_run(
    damage: Callable[[Path], None],
    sentence: str,
    copy_of_flat: CopyOf,
    tokenizer_96: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = copy_of_flat()
    (source / WEIGHTS).unlink()
    damage(source)
    arguments = [str(source), str(tmp_path / "dest"), "--tokenizer", str(tokenizer_96)]
    assert main(["convert", *arguments, "--allow-pickle"]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown and "Traceback" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
