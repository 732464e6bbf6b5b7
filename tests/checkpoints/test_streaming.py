"""A conversion holds a shard and a step, never the checkpoint; what it writes does not depend on
the shards.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3.bench.convert import DecoderSize, convert_marked, write_source
from m3.bench.timing import peak_memory
from m3.checkpoints.base import Options
from m3.checkpoints.convert import convert
from m3.checkpoints.keymap import Dropped, Keymap, Row

FLAT = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    """Twice the layers, the same peak.

    Layers of 38 MB, files read and written of at most 20 MB and one step's tensors.
    """
    peaks, sizes = [], []
    for layers in (4, 12):
        source = tmp_path / f"source_{layers}"
        sizes.append(
            write_source(source, DecoderSize(256, 64, 384, layers), shard_bytes=20_000_000)
        )
        peaks.append(peak_memory(convert_marked, source, tmp_path / f"dest_{layers}", 20_000_000))
    assert sizes[1] - sizes[0] > 250e6
    assert peaks[1] - peaks[0] < 100e6, (peaks, sizes)


def test_shards_hold_the_same_tensors(flat: Path, tokenizer_96: Path, tmp_path: Path) -> None:
    convert(FLAT, tmp_path / "shards", options=Options(tokenizer=tokenizer_96), shard_bytes=30_000)
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(files) > 5 and set(index["weight_map"].values()) == {file.name for file in files}
    tensors = [load_file(file) for file in files]
    assert all(
        sum(t.nbytes for t in shard.values()) <= 30_000 or len(shard) == 1 for shard in tensors
    )
    whole = load_file(flat / "model.safetensors")
    parts = {name: tensor for shard in tensors for name, tensor in shard.items()}
    assert parts.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    convert(tmp_path / "shards", tmp_path / "back", to="m3", shard_bytes=50_000)
    back = {
        k: v
        for file in (tmp_path / "back").glob("*.safetensors")
        for k, v in load_file(file).items()
    }
    original = load_file(FLAT / "model.safetensors")
    assert back.keys() == original.keys() and all(
        torch.equal(back[name], original[name]) for name in original
    )


def test_a_table_is_read_both_ways() -> None:
    table = Keymap((Row("a.*.x.*", "b.*.y.*"), Row("head", "lm_head")), (Dropped("*.ids", "why"),))
    assert table.to_native("a.1.x.w") == "b.1.y.w" and table.to_foreign("b.1.y.w") == "a.1.x.w"
    assert table.to_native("head") == "lm_head" and table.to_native("header") is None
    assert table.drops("c.ids") and not table.drops("c.idsx")
    with pytest.raises(AssertionError, match="differ in"):
        Row("a.*", "b")
