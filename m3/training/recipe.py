"""A training run as typed data: what a recipe's YAML may say (m3/recipes/*.yaml). Unknown keys are refused."""

import math
from dataclasses import dataclass, field
from typing import Literal

from m3.data.recipe import Data, Source

Rate = float | Literal["frozen"]
Scales = Literal["all", "sandwich", "random"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Learning rate of each part of the model, or `frozen`.

    `router`: of the decoder's routers, null for the decoder's own rate. `*_last_layers`: only so many of the part's last
    layers train, and nothing of it outside them.
    """

    vision_tower: Rate
    connector: Rate
    decoder: Rate
    router: Rate | None = None
    vision_last_layers: int | None = None
    decoder_last_layers: int | None = None

    def __post_init__(self) -> None:
        if {self.vision_tower, self.connector, self.decoder, self.router or self.decoder} == {"frozen"}:
            raise ValueError("parts: every part is frozen; give at least one of them a learning rate")


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model of new weights. `vision_tower`: a folder to take the encoder from, else `config.vision_config` is drawn anew."""

    config: dict
    tokenizer: str
    vision_tower: str | None = None


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW. `warmup`: a share of the steps below 1, a number of steps from 1."""

    weight_decay: float = 0.0
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how much at a time. `batch_size`: samples per device and micro-step; one of `steps` and `epochs`.

    `global_batch`: samples of an optimiser step over all devices; the accumulation then follows from their number.
    """

    batch_size: int
    accumulation: int | None = None
    global_batch: int | None = None
    steps: int | None = None
    epochs: float | None = None
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("schedule: give exactly one of steps and epochs")
        if self.accumulation is not None and self.global_batch is not None:
            raise ValueError("schedule: give accumulation or global_batch, not both: the one follows from the other")

    def accumulate(self, devices: int) -> int:
        """Micro-steps of an optimiser step on so many devices.

        Raises:
            ValueError: they cannot make up the global batch.
        """
        if self.global_batch is None:
            return self.accumulation or 1
        at_once = self.batch_size * devices
        if self.global_batch % at_once:
            fitting = [n for n in range(1, self.global_batch // devices + 1) if self.global_batch % (n * devices) == 0]
            raise ValueError(
                f"schedule: a global batch of {self.global_batch} is no multiple of {devices} devices x batch_size "
                f"{self.batch_size} = {at_once}; "
                + (f"batch sizes that fit: {fitting}" if fitting else "take a number of devices that divides it")
            )
        return self.global_batch // at_once

    def step_samples(self, devices: int) -> int:
        """Samples of an optimiser step."""
        return self.batch_size * devices * self.accumulate(devices)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Precision and launching. `deepspeed`: its JSON (scripts/deepspeed). `threads`: of torch on a CPU, null for its default.

    `attention`: transformers' implementation (sdpa, flash_attention_2, ...), null for its choice.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    deepspeed: str | None = None
    activation_checkpointing: bool = False
    experts_implementation: str = "grouped_mm"
    attention: str | None = None
    compile: bool = False
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Samples whose loss at each scale is measured every `every` steps: a small sweep by likelihood, `eval_*` in the metrics."""

    every: int
    source: Source
    samples: int = 64


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA (https://arxiv.org/abs/2106.09685) on the decoder, at the rate `parts.decoder`; other parts train whole or not.

    `targets`: layers that get adapters. `dora`: with a learned magnitude (https://arxiv.org/abs/2402.09353). `quantise`: a
    row of m3/inference/quantisation.py for the frozen base (QLoRA, https://arxiv.org/abs/2305.14314).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[Literal["attention", "mlp", "shared_experts", "routed_experts"], ...] = ("attention",)
    dora: bool = False
    quantise: Literal["bnb-4bit", "bnb-8bit"] | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError(
                "adapter.targets is empty; name at least one of attention, mlp, shared_experts, routed_experts"
            )
        if "routed_experts" in self.targets and self.dropout:
            raise ValueError(
                f"adapter.dropout is {self.dropout}, but adapters of routed experts allow none (the change is added to the "
                "weights, not to the activations); set dropout: 0, or leave routed_experts out of targets"
            )
        if "routed_experts" in self.targets and self.dora:
            raise ValueError("adapter.dora does not go with routed_experts (PEFT has it for linear layers alone)")
        if "routed_experts" in self.targets and self.quantise == "bnb-4bit":
            raise ValueError(
                "adapter.quantise: bnb-4bit packs the routed experts, and PEFT's adapters of them do not work on packed "
                "ones; leave routed_experts out of targets, or take quantise: bnb-8bit, which does not pack them"
            )


@dataclass(frozen=True, kw_only=True)
class Distil:
    """Self-distillation over scales (m3/model/distillation.py): `weight` of the divergence in the loss, its `temperature`.

    Weight 0 trains as without, and logs the divergence.
    """

    weight: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and 0 < self.temperature < math.inf):
            raise ValueError(
                f"distil: weight {self.weight} must be at least 0 and temperature {self.temperature} above 0, both finite; "
                "leave `distil` out to train without"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of a vision-language model over scales.

    `model` is a checkpoint folder to continue from; `new_model` draws one instead. `matryoshka_vis_token_scale`: the
    scales trained over (they become the checkpoint's trained scales). `scales`: all of them every step, or a seeded draw.
    `scale_weights`: of the scales in the loss, 1 where none is given. `distil`: coarser scales learn from the largest too.
    `memory`: `low` reads rows one at a time (m3/training/low_memory.py). `reset_connector`: of `model`, drawn anew; a chain does
    so in its first stage. `report_to`: beside the run's own metrics. `architecture`: what `--dry-run` lays out where `model` is
    not on the machine (m3/recipes/architectures).
    """

    run: str
    parts: Parts
    data: Data
    schedule: Schedule
    matryoshka_vis_token_scale: tuple[int, ...]
    scales: Scales = "all"
    model: str | None = None
    new_model: NewModel | None = None
    architecture: str | None = None
    reset_connector: bool = False
    memory: Literal["packed", "low"] = "packed"
    scale_weights: dict[int, float] | None = None
    distil: Distil | None = None
    held_out: HeldOut | None = None
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    adapter: Adapter | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.new_model is None):
            raise ValueError("recipe: give exactly one of model (a checkpoint folder) and new_model")
        if not self.matryoshka_vis_token_scale:
            raise ValueError("recipe: matryoshka_vis_token_scale must list at least one scale")
        if self.memory == "low" and self.hardware.deepspeed is not None:
            raise ValueError(
                "recipe: memory: low goes backward several times a step, which DeepSpeed does not take; with it, set "
                "hardware.activation_checkpointing: true, or launch with torchrun"
            )
        if self.memory == "low" and self.distil is not None:
            raise ValueError(
                "recipe: memory: low reads one row at a time, and distil compares tokens of several rows; set memory: packed "
                "(hardware.activation_checkpointing: true saves memory too), or leave distil out"
            )
        strange = sorted(set(self.scale_weights or {}) - set(self.matryoshka_vis_token_scale))
        if strange or any(weight <= 0 for weight in (self.scale_weights or {}).values()):
            raise ValueError(
                f"recipe: scale_weights {self.scale_weights} must be positive and of the trained scales "
                f"{list(self.matryoshka_vis_token_scale)}; leave a scale out of those rather than giving it 0"
            )
        if self.adapter is not None:
            if self.model is None:
                raise ValueError("recipe: an adapter needs a model to adapt; give `model`, not `new_model`")
            if self.parts.decoder == "frozen":
                raise ValueError("recipe: parts.decoder is the learning rate of the adapters; it cannot be frozen")
            if (self.parts.vision_last_layers, self.parts.decoder_last_layers) != (None, None):
                raise ValueError("recipe: parts.*_last_layers does not go with an adapter; PEFT trains parts whole")
            if self.adapter.quantise is not None and self.hardware.deepspeed is not None:
                raise ValueError("recipe: adapter.quantise does not go with hardware.deepspeed; run it with torchrun")


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """Pre-training of a vision encoder on dense patch labels (m3/training/patch_labels.py)."""

    run: str
    vision_config: dict
    data: str
    learning_rate: float
    schedule: Schedule
    workers: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)
    hardware: Hardware = field(default_factory=Hardware)
