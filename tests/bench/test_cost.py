"""`m3 bench cost` on a configuration alone and on a whole checkpoint."""

import csv
from pathlib import Path

import pytest
from tiny_models import make_config
from transformers import LlamaConfig

from m3 import cli
from m3.bench import cost
from m3.model.cost import CostModel
from m3.training.setup.resolved import shipped_architectures


def test_configuration_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_config("qwen3_moe").save_pretrained(tmp_path)
    out = tmp_path / "cost.csv"
    arguments = [
        str(tmp_path / "config.json"),
        "--scales",
        "36,9",
        "--batch-sizes",
        "1,4",
        "--accelerator",
        "A100",
    ]
    assert cost.main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (
        "ESTIMATED lower bound in 16 bit for A100 SXM 80GB, 312 TFLOP/s and 2.039 TB/s" in printed
    )
    assert "MEASURED" not in printed
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["scale"]) for row in rows] == [
        ("1", "9"),
        ("1", "36"),
        ("4", "9"),
        ("4", "36"),
    ]
    formulas = CostModel.from_config(make_config("qwen3_moe"), cost.DTYPES["bfloat16"])
    assert int(rows[3]["prefill_flops"]) == formulas.cost(36, 30, batch_size=4).prefill_flops
    assert all(float(row["estimated_first_token_s"]) > 0 for row in rows)
    assert not any(name.startswith("measured") for name in rows[0])


def test_measured_stands_beside_the_estimate_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_config("llama").save_pretrained(tmp_path)  # no weights: random ones are measured
    arguments = [
        str(tmp_path),
        "--scales",
        "9",
        "--measure",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "c.csv"),
    ]
    assert cost.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "MEASURED on CPU (" in printed
    assert "nothing was run on it" in printed
    with (tmp_path / "c.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["measured_dtype"], row["estimated_accelerator"]) == ("bfloat16", "H100 SXM 80GB")
    assert float(row["measured_first_token_s"]) > float(row["estimated_first_token_s"])


def test_the_estimate_is_of_16_bit_whatever_is_counted(tmp_path: Path):
    make_config("llama").save_pretrained(tmp_path)
    rows = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.csv"
        assert cost.main([str(tmp_path), "--scales", "9", "--dtype", dtype, "--out", str(out)]) == 0
        with out.open() as file:
            (rows[dtype],) = csv.DictReader(file)
    full, half = rows["float32"], rows["bfloat16"]
    assert int(full["kv_cache_bytes"]) == 2 * int(half["kv_cache_bytes"])
    assert full["estimated_first_token_s"] == half["estimated_first_token_s"]


def test_mistakes_are_named(tmp_path: Path):
    make_config("llama").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="--scales takes numbers with commas, such as 1,9,36, or .*; got '9,x'"
    ):
        cost.main([str(tmp_path), "--scales", "9,x"])
    with pytest.raises(ValueError, match="scale 5 cannot be reached exactly from a 12x12 grid"):
        cost.main([str(tmp_path), "--scales", "5"])


def test_what_has_no_such_cost_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    for arguments, message in (
        ([str(tmp_path)], "a model of type 'llama', expected 'm3'"),
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path), "--text-tokens", "-1"], "--text-tokens -1: expected a number from 0"),
    ):
        assert cli.main(["bench", "cost", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("model", ["llava_1_5_7b", "m3/recipes/architectures/llava_1_5_7b.yaml"])
def test_a_shipped_architecture_needs_no_checkpoint(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert cli.main(["bench", "cost", model, "--scales", "1,576"]) == 0
    assert capsys.readouterr().out.startswith("7.06 G parameters (14.1 GB in bfloat16)")


def test_every_shipped_architecture_has_a_cost():
    assert len(shipped_architectures()) >= 4
    for name in shipped_architectures():
        config = cost.model_config(name)
        assert CostModel.from_config(config).parameters > 5e9, name


def test_a_mistyped_architecture_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", "cost", "lava_1_5_7b"]) == 2
    assert "and no architecture. Did you mean 'llava_1_5_7b'?" in capsys.readouterr().err
