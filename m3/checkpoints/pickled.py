"""Pickled weights (`.bin`), on request: read in a process of their own, and laid out as safetensors.

in: a folder whose weights are `pytorch_model.bin`, or shards of it; out: a folder beside with the
same files, but safetensors in their place. The process reads with `torch.load(weights_only=True)`,
which takes tensors and refuses all else that a pickle may hold, and ends with what it read; one
that is damaged takes nothing else down with it.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from m3.checkpoints.base import read_json
from m3.checkpoints.weights import INDEX, SINGLE, pickled_files, refuse_adapter, save_shard
from m3.config import decode

PICKLED_INDEX = "pytorch_model.bin.index.json"


@contextmanager
def as_safetensors(folder: Path, beside: Path) -> Iterator[Path]:
    """`folder` itself where it has safetensors; else a copy of it in which they replace the pickles,
    in a temporary folder in `beside` for as long as the block lasts.

    Raises:
        ValueError: a pickle that holds anything but tensors, or is damaged.
    """
    pickles = pickled_files(folder)
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file() or not pickles:
        yield folder
        return
    refuse_adapter(folder)
    _check_shards(folder, pickles)
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpickled-", dir=beside) as temporary:
        copy = Path(temporary) / folder.resolve().name
        copy.mkdir()
        for path in folder.iterdir():
            if path not in pickles:
                (copy / path.name).symlink_to(path.resolve())
        command = [sys.executable, "-m", "m3.checkpoints.pickled", str(copy), *map(str, pickles)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = ran.stderr.strip().rsplit("\n", 1)[-1] or f"it ended with {ran.returncode}"
            raise ValueError(f"{folder}: the pickled weights cannot be read: {reason}")
        yield copy


def _check_shards(folder: Path, pickles: list[Path]) -> None:
    """A `ValueError` for shards that the index of the pickles names and the folder lacks."""
    index = folder / PICKLED_INDEX
    if not index.is_file():
        return
    weight_map = read_json(index).get("weight_map")
    shards = set(decode(weight_map, dict[str, str], f"{index}: weight_map").values())
    missing = sorted(shards - {path.name for path in pickles})
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of the {len(shards)} files that {PICKLED_INDEX} names are "
            f"missing: {', '.join(missing)}. Copy or download them again"
        )


def main(arguments: list[str]) -> int:
    """In the process of its own: a shard of safetensors per file, and the index."""
    dest, pickles = Path(arguments[0]), [Path(name) for name in arguments[1:]]
    tensor_files: dict[str, str] = {}
    for number, file in enumerate(pickles):
        try:
            tensors = _read(file)
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        shard = f"model-{number:05}.safetensors"
        save_shard(tensors, dest / shard)
        tensor_files |= dict.fromkeys(tensors, shard)
    (dest / INDEX).write_text(json.dumps({"weight_map": tensor_files}))
    return 0


def _read(file: Path) -> dict[str, Tensor]:
    """The named tensors of a pickle, none of which shares memory with another."""
    try:
        # mapped where the file allows it, so that memory holds the copies alone
        content = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except UnpicklingError as error:
        reason = " ".join(str(error).split()).partition(" Please file")[0]
        raise ValueError(f"{file.name} holds more than tensors ({reason[-200:]})") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file.name} is damaged or cut short ({error})") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError(f"{file.name} is no table of named tensors, as a checkpoint's weights are")
    return {name: tensor.clone() for name, tensor in content.items()}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
