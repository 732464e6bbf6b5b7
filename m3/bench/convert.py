"""`m3 bench convert`: the memory that a conversion needs, against the size of the checkpoint.

The checkpoint is transformers' LLaVA around a Qwen3-MoE decoder with a tensor per expert, so that
the conversion does all that it can: rename weights and stack the experts of a layer. Its tensors
are zeros in sparse files, which take no disk space; the converted files do.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaConfig

from m3.bench.options import convert_options
from m3.bench.timing import peak_memory
from m3.checkpoints.conversion import HubLayout
from m3.checkpoints.convert import convert
from m3.checkpoints.formats.llava_hf import LlavaHf
from m3.checkpoints.weights import INDEX, nbytes
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.processing.chat_template import IMAGE_TOKEN


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of the decoder; a layer of the default sizes has 1.2 GB (bfloat16)."""

    width: int = 2048
    experts: int = 128
    expert_width: int = 768
    layers: int = 1


def main(argv: list[str]) -> int:
    """Print the size of the checkpoint, the peak of memory above the start, and their ratio."""
    arguments = convert_options().parse_args(argv)
    layer_count = max(1, round(arguments.gigabytes / 1.23))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, dest = Path(folder) / "source", Path(folder) / "dest"
        source_bytes = write_source(source, DecoderSize(layers=layer_count))
        peak_bytes = peak_memory(convert_marked, source, dest, int(arguments.shard_gb * 1e9))
        files = sorted(dest.glob("*.safetensors"))
        largest_bytes = max(file.stat().st_size for file in files)
    print(
        f"checkpoint {source_bytes / 1e9:.2f} GB; {len(files)} files written, the largest "
        f"{largest_bytes / 1e9:.2f} GB"
    )
    ratio = peak_bytes / source_bytes
    print(f"peak memory above the start {peak_bytes / 1e9:.2f} GB: {ratio:.2f} of the checkpoint")
    return 0


def convert_marked(
    mark_start: Callable[[], object], source: Path, dest: Path, shard_bytes: int
) -> None:
    """A task for `peak_memory`."""
    mark_start()
    convert(source, dest, shard_bytes=shard_bytes)


def write_source(folder: Path, decoder_size: DecoderSize, shard_bytes: int = 4 * 10**9) -> int:
    """Write the checkpoint and return its size in bytes."""
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        text_config={
            "model_type": "qwen3_moe",
            "vocab_size": len(tokenizer),
            "hidden_size": decoder_size.width,
            "num_experts": decoder_size.experts,
            "moe_intermediate_size": decoder_size.expert_width,
            "num_hidden_layers": decoder_size.layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": decoder_size.width // 16,
        },
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 336}).save_pretrained(folder)
    model = LlavaHf().empty(config)
    module_weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for step in HubLayout(model).writing(module_weights):
        tensors |= step.run(module_weights.__getitem__)
    _write_sparse(folder, tensors, shard_bytes)
    return nbytes(tensors)


def _write_sparse(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and nbytes(shards[-1]) + nbytes({name: tensor}) > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    weight_map: dict[str, str] = {}
    for shard_number, shard in enumerate(shards, 1):
        file_name = f"model-{shard_number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file_name)
        _write_zeros(folder / file_name, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_zeros(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a sparse safetensors file of bfloat16 zeros: header length, header, and a hole."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    header_bytes = json.dumps(header).encode()
    with path.open("wb") as output:
        output.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        output.truncate(8 + len(header_bytes) + end)
