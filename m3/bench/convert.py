"""`m3 bench convert`: the memory that a conversion needs, against the size of the checkpoint.

The checkpoint is transformers' LLaVA around a Qwen3-MoE decoder with every expert in a tensor of
its own, so that the conversion has all to do that it can have: names change, and the experts of a
layer are stacked. Its tensors are zeros in sparse files, which take no disk; what is written does.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaConfig

from m3.bench.timing import peak_memory
from m3.checkpoints.conversion import HubLayout
from m3.checkpoints.convert import convert
from m3.checkpoints.formats.llava_hf import LlavaHf
from m3.checkpoints.streaming import SHARD_BYTES
from m3.checkpoints.weights import INDEX, nbytes
from m3.data.synthetic.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Size:
    """Of the decoder: width, experts per layer, width of an expert, layers.

    The default layer has 1.2 GB (bfloat16).
    """

    width: int = 2048
    experts: int = 128
    expert_width: int = 768
    layers: int = 1


def main(argv: list[str]) -> int:
    """Prints the size of the checkpoint, the peak of memory above the start, and their ratio."""
    parser = argparse.ArgumentParser(prog="m3 bench convert", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument(
        "--shard-gb", type=float, default=SHARD_BYTES / 1e9, help="largest file of weights written"
    )
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    arguments = parser.parse_args(argv)
    layers = max(1, round(arguments.gigabytes / 1.23))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work_folder:
        source_folder, dest = Path(work_folder) / "source", Path(work_folder) / "dest"
        source_bytes = write_source(source_folder, Size(layers=layers))
        peak = peak_memory(convert_marked, source_folder, dest, int(arguments.shard_gb * 1e9))
        shard_files = sorted(dest.glob("*.safetensors"))
        largest_shard = max(shard_file.stat().st_size for shard_file in shard_files)
    print(
        f"checkpoint {source_bytes / 1e9:.2f} GB; {len(shard_files)} files written, the largest "
        f"{largest_shard / 1e9:.2f} GB"
    )
    print(
        f"peak memory above the start {peak / 1e9:.2f} GB: {peak / source_bytes:.2f} of the checkpoint"
    )
    return 0


def convert_marked(mark: Callable[[], object], source: Path, dest: Path, shard_bytes: int) -> None:
    """A task for `peak_memory`."""
    mark()
    convert(source, dest, shard_bytes=shard_bytes)


def write_source(folder: Path, size: Size, shard_bytes: int = 4 * 10**9) -> int:
    """Writes the checkpoint and returns its bytes."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        text_config={
            "model_type": "qwen3_moe",
            "vocab_size": len(tokenizer),
            "hidden_size": size.width,
            "num_experts": size.experts,
            "moe_intermediate_size": size.expert_width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": size.width // 16,
        },
        image_token_index=tokenizer.get_vocab()["<image>"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 336}).save_pretrained(folder)
    model = LlavaHf().empty(config)
    modules = {tensor_name: tensor.bfloat16() for tensor_name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for writing_step in HubLayout(model).writing(modules):
        tensors |= writing_step.run(modules.__getitem__)
    _write_sparse(folder, tensors, shard_bytes)
    return nbytes(tensors)


def _write_sparse(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    for tensor_name, tensor in tensors.items():
        if shards[-1] and nbytes(shards[-1]) + nbytes({tensor_name: tensor}) > shard_bytes:
            shards.append({})
        shards[-1][tensor_name] = tensor
    weight_map: dict[str, str] = {}
    for shard_number, shard in enumerate(shards, 1):
        shard_name = f"model-{shard_number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, shard_name)
        _write_zeros(folder / shard_name, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_zeros(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of bfloat16 zeros: eight bytes of header length, the header, and a
    hole.
    """
    header: dict[str, object] = {}
    byte_end = 0
    for tensor_name, tensor in tensors.items():
        byte_start, byte_end = byte_end, byte_end + 2 * tensor.numel()
        header[tensor_name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [byte_start, byte_end],
        }
    header_bytes = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        out.truncate(8 + len(header_bytes) + byte_end)
