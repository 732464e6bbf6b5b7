"""Memory of a training run before it starts: what a device holds, and the machine where DeepSpeed
offloads to it.

in: a resolved recipe, numbers of parameters and the tokens of a sample; out: bytes. Alone from the
dry run because its arithmetic is asked once for each way of sharding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m3.training.loop.distributed import zero_options
from m3.training.recipe.recipe import Recipe
from m3.training.setup.resolved import ResolvedRun


@dataclass(frozen=True)
class Sharding:
    """What is dealt to the devices (DeepSpeed's stages: 1 optimiser, 2 gradients too, 3 weights
    too), and what lies in the machine's memory instead.
    """

    stage: int = 0
    offloads_optimiser: bool = False
    offloads_weights: bool = False


LAUNCHED: Mapping[str, Sharding] = {
    "ZeRO-2 (ZERO=zero2)": Sharding(2),
    "ZeRO-3 (ZERO=zero3)": Sharding(3),
    "ZeRO-3 with offload (ZERO=zero3_offload)": Sharding(3, True, True),
}
"""The files of scripts/deepspeed, by what the launchers call them."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, and of the machine's own memory for all of `devices`."""

    device: float
    machine: float


def read_sharding(recipe: Recipe) -> Sharding:
    """The sharding that the recipe's DeepSpeed configuration says; none without one."""
    if recipe.hardware.deepspeed is None:
        return Sharding()
    zero = zero_options(recipe.hardware.deepspeed)

    def is_offloaded(section: str) -> bool:
        settings: Any = zero.get(section) or {}
        return settings.get("device", "none") != "none"

    offloads = is_offloaded("offload_optimizer"), is_offloaded("offload_param")
    return Sharding(int(zero["stage"]), *offloads)


def estimate_memory(
    resolved: ResolvedRun,
    total_count: int,
    trained_count: int,
    activations: float,
    sharding: Sharding,
) -> Memory:
    """Weights, gradients, AdamW's state and `activations`, without what kernels and allocators
    add.

    Plain: float32 weights and gradients 4 + 4 bytes, moments 8. DeepSpeed in bfloat16: 2 + 2,
    float32 copy and moments 12; with its optimiser offloaded, gradients go to the machine as they
    come (https://arxiv.org/abs/2101.06840); with its weights offloaded, a device holds those of
    two layers, one being computed and one fetched ahead.
    """
    recipe, devices = resolved.recipe, resolved.devices
    is_half = recipe.hardware.precision == "bfloat16"
    mixed = is_half and sharding.stage > 0
    weights, gradients, optimiser = (2.0, 2, 12) if mixed else (4.0, 4, 8)
    if recipe.adapter is not None and is_half:
        weights = 2
    if recipe.adapter is not None and recipe.adapter.quantise is not None:
        weights = 0.6 if recipe.adapter.quantise == "bnb-4bit" else 1.1
    weight_bytes = total_count * weights / (devices if sharding.stage == 3 else 1)
    gradient_bytes = trained_count * gradients / (devices if sharding.stage >= 2 else 1)
    optimiser_bytes = trained_count * optimiser / (devices if sharding.stage >= 1 else 1)
    device, machine = activations, 0.0
    if sharding.offloads_optimiser:
        machine += devices * (gradient_bytes + optimiser_bytes)
    else:
        device += gradient_bytes + optimiser_bytes
    if sharding.offloads_weights:
        machine += devices * weight_bytes
        device += 2 * weights * total_count / resolved.config.text_config.num_hidden_layers
    else:
        device += weight_bytes
    return Memory(device, machine)


def activation_bytes(resolved: ResolvedRun, tokens: float, text_tokens: int) -> float:
    """Of a micro-batch: a checkpointed layer keeps its input; else about 34 values a token and unit
    of width (https://arxiv.org/abs/2205.05198). Logits of the text, three times.
    """
    recipe, text = resolved.recipe, resolved.config.text_config
    row_tokens = recipe.schedule.batch_size * tokens
    factor = 2 if recipe.hardware.activation_checkpointing else 34
    width = 2 if recipe.hardware.precision == "bfloat16" else 4
    layers = text.num_hidden_layers * text.hidden_size * row_tokens * factor / 2 * width
    return layers + recipe.schedule.batch_size * text_tokens * text.vocab_size * 4 * 3


def memory_lines(
    resolved: ResolvedRun,
    total_count: int,
    trained_count: int,
    activations: float,
    device_memory: float | None,
) -> list[str]:
    """A line for the recipe as it stands; where several devices would each hold all of it, one for
    each way that the launchers shard it.

    `device_memory`: bytes of a device, None where it is not known.
    """

    def say(sharding: Sharding) -> str:
        memory = estimate_memory(resolved, total_count, trained_count, activations, sharding)
        host = f", and {memory.machine / 2**30:.2f} of the machine in all" if memory.machine else ""
        fits = ""
        if device_memory is not None:
            fits = "; fits" if memory.device < device_memory else "; DOES NOT FIT"
        return f"{memory.device / 2**30:.2f} GiB a device{host}{fits}"

    sharding = read_sharding(resolved.recipe)
    if sharding != Sharding() or resolved.devices == 1:
        return [f"memory          about {say(sharding)} (estimate)"]
    return [
        f"memory          about {say(sharding)}, nothing sharded (estimate)",
        *(f"  {name}: about {say(launched)}" for name, launched in LAUNCHED.items()),
    ]
