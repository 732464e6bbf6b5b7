"""Safetensors on disk: the tensors of a checkpoint folder by name, read one at a time; shards
written one at a time.

in: a folder with `model.safetensors`, or `model.safetensors.index.json` and its shards; out: names
with shapes and types (`Weights.meta`, on the meta device), and each tensor when it is asked for.
Nothing is unpickled here: m3/checkpoints/pickled.py does so on request.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_utils import load_state_dict

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.bin", "*.pth", "*.pt", "*.ckpt")
"""The first pattern that some file has is that of the weights; others then lie beside them."""
CONNECTOR_ALONE = "mm_projector.bin"
MAPPED_BYTES = 64 * 2**20
"""A shard is mapped into memory while it is read; after so many bytes it is let go and opened
anew.
"""


class TensorSource(ABC):
    """Named tensors: `meta` says which, with shape and type on the meta device; `read` gives
    one.
    """

    meta: dict[str, Tensor]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""


class Weights(TensorSource):
    """The tensors of a checkpoint folder. Use it in a `with` block, which closes the open shard.

    Raises:
        ValueError: no safetensors (pickled weights alone included), a shard that is missing or cut
            short, an index that places a tensor in a file without it.
    """

    def __init__(self, folder: Path) -> None:
        self.meta = {}
        self._file: dict[str, Path] = {}
        shard_files, tensor_files = _shards(folder)
        for shard_file in shard_files:
            for tensor_name, tensor in _header(shard_file).items():
                # a tensor that stands in two files is read where the index says
                if tensor_files.get(tensor_name, shard_file) == shard_file:
                    self.meta[tensor_name], self._file[tensor_name] = tensor, shard_file
        lost_names = [tensor_name for tensor_name in tensor_files if tensor_name not in self.meta]
        if lost_names:
            raise ValueError(
                f"{folder}: {INDEX} places {len(lost_names)} tensors in files that do not hold "
                f"them, such as {lost_names[0]} in {tensor_files[lost_names[0]].name}. Copy or "
                "download the checkpoint again"
            )
        self._stack, self._open, self._read_bytes = ExitStack(), None, 0
        self._handle: Any = None

    def __enter__(self) -> "Weights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """A copy of one tensor, on the CPU."""
        shard_file = self._file[name]
        if shard_file != self._open or self._read_bytes > MAPPED_BYTES:
            self._stack.close()
            self._handle = self._stack.enter_context(safe_open(shard_file, framework="pt"))
            self._open, self._read_bytes = shard_file, 0
        tensor = self._handle.get_tensor(name).clone()  # a copy, so that the file can be let go
        self._read_bytes += tensor.nbytes
        return tensor


def save_shard(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes one safetensors file."""
    save_file(
        {tensor_name: tensor.contiguous() for tensor_name, tensor in tensors.items()},
        file,
        metadata={"format": "pt"},
    )


def _shards(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files, and in which of them the index says that each tensor is (nothing where there is
    no index).
    """
    index_file, single_file = folder / INDEX, folder / SINGLE
    if index_file.is_file():
        tensor_files = _weight_map(index_file)
        shard_files = sorted(set(tensor_files.values()))
        strange = [shard_name for shard_name in shard_files if Path(shard_name).name != shard_name]
        if strange:
            raise ValueError(
                f"{index_file}: shards must be files of the same folder, got {', '.join(strange)}"
            )
        missing_files = [
            shard_name for shard_name in shard_files if not (folder / shard_name).is_file()
        ]
        if missing_files:
            raise ValueError(
                f"{folder}: {len(missing_files)} of the {len(shard_files)} shards that {INDEX} "
                f"names are missing: {', '.join(missing_files)}. Copy or download them again"
            )
        return [folder / shard_name for shard_name in shard_files], {
            tensor_name: folder / shard_name for tensor_name, shard_name in tensor_files.items()
        }
    if single_file.is_file():
        return [single_file], {}
    refuse_adapter(folder)
    pickles = pickled_files(folder)
    if pickles:
        names = ", ".join(pickle.name for pickle in pickles[:4])
        raise ValueError(
            f"{folder} has pickled weights only ({names}), and a pickle may run whatever its author "
            "wrote. Where you trust that author, give --allow-pickle: the files are then read by "
            "torch.load(weights_only=True), in a process of its own"
        )
    raise ValueError(f"{folder} has no weights: expected {SINGLE}, or {INDEX} and its shards")


def pickled_files(folder: Path) -> list[Path]:
    """Pickled weights of a folder, in the order of their names."""
    by_pattern = (sorted(folder.glob(pattern)) for pattern in PICKLED)
    return next((paths for paths in by_pattern if paths), [])


def refuse_adapter(folder: Path) -> None:
    """A `ValueError` for a folder of LoRA, or of a connector alone, as LLaVA's training writes
    them: half a model.
    """
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = _base_of(adapter)
        raise ValueError(
            f"{folder} is a LoRA adapter of {base} ({adapter.name}), not a whole model: merge it "
            "into that model with "
            "LLaVA's scripts/merge_lora_weights.py, save with safetensors, and convert the result"
        )
    # whole models may hold it too, beside the weights that it became a part of
    if [path.name for path in pickled_files(folder)] == [CONNECTOR_ALONE]:
        raise ValueError(
            f"{folder} holds the connector of LLaVA's pre-training alone ({CONNECTOR_ALONE}), not "
            "a whole model: fine-tune "
            "with it first, and convert the result"
        )


def _base_of(adapter: Path) -> str:
    try:
        return str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return "a model that it does not name"


def _weight_map(index: Path) -> dict[str, str]:
    try:
        tensor_files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{index}: not an index of shards ({error!r}). Copy or download it again"
        ) from error
    if not isinstance(tensor_files, dict) or not all(
        isinstance(shard_name, str) for shard_name in tensor_files.values()
    ):
        raise ValueError(
            f"{index}: weight_map must say the file of each tensor, got {tensor_files!r}"
        )
    return tensor_files


def _header(file: Path) -> dict[str, Tensor]:
    try:
        return load_state_dict(file, map_location="meta")
    except SafetensorError as error:
        raise ValueError(
            f"{file}: damaged or cut short ({error}; {file.stat().st_size:,} bytes). Copy or "
            "download it again"
        ) from error


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors, on the meta device too."""
    return sum(
        tensor.numel() * torch.empty(0, dtype=tensor.dtype).element_size()
        for tensor in tensors.values()
    )
