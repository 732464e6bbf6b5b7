"""The sections of a recipe as typed data; m3/training/recipe/recipe.py puts them together.

Unknown keys are refused.
"""

import math
from dataclasses import dataclass
from typing import Literal

from m3.config import check_positive
from m3.data.recipe import Source

Rate = float | Literal["frozen"]
Scales = Literal["all", "sandwich", "random"]
TASKS_FOLDER = "lmms_eval_tasks"
"""Where tasks of one's own are looked for unless a recipe says otherwise; it need not be there."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Learning rate of each part of the model, or `frozen`.

    `router`: of the decoder's routers, null for the decoder's own rate. `new_tokens`: of the rows
    of tokens that the decoder's pre-training has not seen, where the tables are frozen (an adapter,
    a frozen decoder); null for the rate of the decoder, or else of the connector
    (m3/training/setup/new_tokens.py). `*_last_layers`: only so many of the part's last layers train, and
    nothing of it outside them.
    """

    vision_tower: Rate
    connector: Rate
    decoder: Rate
    router: Rate | None = None
    reducer: Rate | None = None
    new_tokens: Rate | None = None
    vision_last_layers: int | None = None
    decoder_last_layers: int | None = None

    def __post_init__(self) -> None:
        rates = {
            "vision_tower": self.vision_tower,
            "connector": self.connector,
            "decoder": self.decoder,
        }
        other_rates = {
            "router": self.router,
            "reducer": self.reducer,
            "new_tokens": self.new_tokens,
        }
        for part_name, rate in (rates | other_rates).items():
            if isinstance(rate, int | float) and not 0 < rate < math.inf:
                raise ValueError(
                    f"parts.{part_name}: a learning rate must be a number above 0 (1e-4), or "
                    f"frozen, got {rate}"
                )
        router = self.decoder if self.router is None else self.router
        if {*rates.values(), router} == {"frozen"}:
            raise ValueError(
                "parts: every part is frozen; give at least one of them a learning rate"
            )
        for part_name, last_layers in (
            ("vision_tower", self.vision_last_layers),
            ("decoder", self.decoder_last_layers),
        ):
            if last_layers is not None and rates[part_name] == "frozen":
                layers_key = f"{part_name.removesuffix('_tower')}_last_layers"
                raise ValueError(
                    f"parts: {layers_key} {last_layers} are to train, and {part_name} is frozen, so "
                    f"none would; give {part_name} a learning rate, or leave {layers_key} out"
                )


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model of new weights.

    `vision_tower`: a folder to take the encoder from, else `config.vision_config` is drawn anew.
    """

    config: dict
    tokenizer: str
    vision_tower: str | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """More positions for the decoder (m3/training/setup/context_length.py).

    `rope_theta`: the new base of its rotations; null keeps it.
    """

    positions: int
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        if self.positions < 1 or (
            self.rope_theta is not None and not 0 < self.rope_theta < math.inf
        ):
            raise ValueError(
                f"context: positions and rope_theta must be above 0, got {self.positions}, "
                f"{self.rope_theta}"
            )


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW.

    `warmup`: a share of the steps below 1, a number of steps from 1. `max_grad_norm`: 0 for no
    clipping.
    """

    weight_decay: float = 0.0
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.max_grad_norm < math.inf:
            raise ValueError(
                "optimiser.max_grad_norm must be a number from 0 (0: no clipping), got "
                f"{self.max_grad_norm}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"optimiser.weight_decay must be a number from 0, got {self.weight_decay}"
            )
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"optimiser.beta2 must be from 0 to below 1, got {self.beta2}")
        if not 0 <= self.warmup < math.inf:
            raise ValueError(
                "optimiser.warmup must be a share of the steps (below 1) or a number of steps, "
                f"got {self.warmup}"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of training and size of its steps.

    `batch_size`: samples per device and micro-step; one of `steps` and `epochs`.

    `global_batch`: samples of an optimiser step over all devices; the accumulation then follows
        from their number.
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
            raise ValueError(
                "schedule: give accumulation or global_batch, not both: the one "
                "follows from the other"
            )
        check_positive(
            "schedule",
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            global_batch=self.global_batch,
            steps=self.steps,
            log_every=self.log_every,
            save_every=self.save_every,
            keep_checkpoints=self.keep_checkpoints,
        )
        if self.seed < 0:
            raise ValueError(f"schedule.seed must be at least 0, got {self.seed}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"schedule.epochs must be a number above 0, got {self.epochs}")

    def accumulate(self, devices: int) -> int:
        """Micro-steps of an optimiser step on so many devices.

        Raises:
            ValueError: they cannot make up the global batch.
        """
        if self.global_batch is None:
            return self.accumulation or 1
        at_once = self.batch_size * devices
        if self.global_batch % at_once:
            fitting = [
                n
                for n in range(1, self.global_batch // devices + 1)
                if self.global_batch % (n * devices) == 0
            ]
            raise ValueError(
                f"schedule: a global batch of {self.global_batch} is no multiple of {devices} "
                "devices x batch_size "
                f"{self.batch_size} = {at_once}; "
                + (
                    f"batch sizes that fit: {fitting}"
                    if fitting
                    else "take a number of devices that divides it"
                )
            )
        return self.global_batch // at_once

    def step_samples(self, devices: int) -> int:
        """Samples of an optimiser step."""
        return self.batch_size * devices * self.accumulate(devices)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Precision and launching.

    `deepspeed`: its JSON (scripts/deepspeed). `threads`: of torch on a CPU, null for its default.

    `attention`: transformers' implementation (sdpa, flash_attention_2, ...) or `packed`; null for
    the best one that keeps packed sequences apart (m3/model/packing_check.py). `liger`: Liger's
    kernels in the decoder (m3/training/setup/liger.py). `compile`: torch.compile of the tower's and the
    decoder's layers (m3/training/setup/compiling.py).
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    deepspeed: str | None = None
    activation_checkpointing: bool = False
    experts_implementation: str = "grouped_mm"
    attention: str | None = None
    compile: bool = False
    liger: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        check_positive("hardware", threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Samples whose loss at each scale is measured every `every` steps: a small sweep by
    likelihood, `eval_*` in the metrics.
    """

    every: int
    source: Source
    samples: int = 64

    def __post_init__(self) -> None:
        check_positive("held_out", every=self.every, samples=self.samples)
        if self.source.weight != 1:
            raise ValueError(
                f"held_out.source: weight {self.source.weight:g} would not be looked at; "
                "held_out.samples says how many are read"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A small sweep of benchmarks with the live model every `every` steps; a folder of the run
    holds each for `m3 report`.

    `tasks`: as `m3 sweep --tasks`. `scales`: null for those trained. `limit`: documents of each
        task, null for all of them.
    `include_path`, `data_root`: as the sweep's options.
    """

    every: int
    tasks: tuple[str, ...]
    scales: tuple[int | str, ...] | None = None
    limit: int | None = 64
    batch_size: int = 16
    include_path: str = TASKS_FOLDER
    data_root: str | None = None

    def __post_init__(self) -> None:
        check_positive("evaluation", every=self.every, limit=self.limit, batch_size=self.batch_size)
        if not self.tasks or self.scales == ():
            raise ValueError(
                "evaluation: name at least one of tasks, and of scales unless they are null"
            )


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA (https://arxiv.org/abs/2106.09685) on the decoder, at the rate `parts.decoder`; other
    parts train whole or not.

    `targets`: layers that get adapters. `dora`: with a learned magnitude
    (https://arxiv.org/abs/2402.09353). `quantise`: a row of m3/inference/quantisation.py for the
    frozen base (QLoRA, https://arxiv.org/abs/2305.14314).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[Literal["attention", "mlp", "shared_experts", "routed_experts"], ...] = (
        "attention",
    )
    dora: bool = False
    quantise: Literal["bnb-4bit", "bnb-8bit"] | None = None

    def __post_init__(self) -> None:
        check_positive("adapter", rank=self.rank)
        if not 0 < self.alpha < math.inf:
            raise ValueError(
                f"adapter.alpha must be a number above 0, got {self.alpha:g}: at 0 the adapter "
                "changes nothing"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout must be from 0 to below 1, got {self.dropout:g}")
        if not self.targets:
            raise ValueError(
                "adapter.targets is empty; name at least one of attention, mlp, shared_experts, "
                "routed_experts"
            )
        if "routed_experts" in self.targets and self.dropout:
            raise ValueError(
                f"adapter.dropout is {self.dropout}, but adapters of routed experts allow none "
                "(the change is added to the "
                "weights, not to the activations); set dropout: 0, or leave routed_experts out of "
                "targets"
            )
        if "routed_experts" in self.targets and self.dora:
            raise ValueError(
                "adapter.dora does not go with routed_experts (PEFT has it for linear layers alone)"
            )
        if "routed_experts" in self.targets and self.quantise == "bnb-4bit":
            raise ValueError(
                "adapter.quantise: bnb-4bit packs the routed experts, and PEFT's adapters of them "
                "do not work on packed "
                "ones; leave routed_experts out of targets, or take quantise: bnb-8bit, which does "
                "not pack them"
            )


@dataclass(frozen=True, kw_only=True)
class Distil:
    """Self-distillation over scales (m3/model/distillation.py): `weight` of the divergence in the
    loss, its `temperature`.

    Weight 0 trains as without, and logs the divergence.
    """

    weight: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and 0 < self.temperature < math.inf):
            raise ValueError(
                f"distil: weight {self.weight} must be at least 0 and temperature "
                f"{self.temperature} above 0, both finite; "
                "leave `distil` out to train without"
            )
