"""One process or several: who this one is, and what must be in place before transformers looks at
the machine.

torchrun, `deepspeed` and `accelerate launch` set RANK, LOCAL_RANK and WORLD_SIZE; without them
there is one process.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from m3.model import M3ForConditionalGeneration


@dataclass(frozen=True)
class World:
    """This process among `size` of them."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """From the launcher's environment."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def wait_for_everyone() -> None:
    """Returns when every process got here; at once where there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, which must have one shape everywhere and lie where
    the processes talk.
    """
    summed_values = values.clone()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(summed_values)
    return summed_values


def union_over_processes(names: Iterable[str]) -> list[str]:
    """All names that any process has, sorted."""
    if not torch.distributed.is_initialized():
        return sorted(names)
    everyone: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everyone, list(names))
    return sorted({shared_name for process_names in everyone for shared_name in process_names})


def say_to_everyone(text: str | None) -> str | None:
    """Share what the first process says with every process."""
    shared_texts = [text]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(shared_texts, src=0)
    return shared_texts[0]


def zero_options(config: str) -> dict[str, Any]:
    """Settings of DeepSpeed's JSON under `zero_optimization`; a `ValueError` if there is no such
    file, or it says no stage.
    """
    if not Path(config).is_file():
        raise ValueError(
            f"hardware.deepspeed: no such file {config!r}; scripts/deepspeed has zero2, zero3, "
            "zero3_offload"
        )
    try:
        config_content = yaml.safe_load(Path(config).read_text())
    except yaml.YAMLError:
        config_content = None
    zero = config_content.get("zero_optimization") if isinstance(config_content, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise ValueError(
            f"hardware.deepspeed: {config}: expected JSON with zero_optimization.stage from 0 to "
            "3, as in scripts/deepspeed"
        )
    return zero


def start_deepspeed(config: str) -> bool:
    """Prepares the process for DeepSpeed; to be called before `TrainingArguments` are made.

    Returns whether the state of accelerate is configured already. That is so on CPUs alone:
    accelerate takes DeepSpeed on a CPU for one process unless it is told the backend.

    Raises:
        ValueError: no such file, no launcher, a setting under which the run would end without its
            weights.
    """
    zero = zero_options(config)
    if zero["stage"] == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save", False):
        raise ValueError(
            f"hardware.deepspeed: {config} leaves the weights in shards; set zero_optimization."
            "stage3_gather_16bit_weights_on_model_save to true, so that checkpoints hold whole ones"
        )
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "hardware.deepspeed needs a launcher: run `bash scripts/finetune.sh`, or `deepspeed "
            "--module m3.cli train ...` "
            "(also for one device)"
        )
    if torch.accelerator.is_available():
        return False
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when first imported
    from accelerate.state import AcceleratorState, PartialState

    # of an earlier stage; transformers does so itself on GPUs
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return True


def gather_parts_at_once(model: M3ForConditionalGeneration) -> None:
    """ZeRO-3: the token reducer and every block that holds a router are gathered as one module.

    DeepSpeed gathers parameters in the order of an earlier step; which experts a token visits
    (https://github.com/deepspeedai/DeepSpeed/pull/4966) and which scales a batch has differ between
    ranks.
    """
    from deepspeed.utils import set_z3_leaf_modules

    routers = model.model.routers
    blocks = {
        type(module)
        for module in model.modules()
        if any(child in routers for child in module.children())
    }
    set_z3_leaf_modules(model, [type(model.model.reducer), *blocks])
