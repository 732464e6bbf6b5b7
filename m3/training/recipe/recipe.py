"""A training run as typed data: what a recipe's YAML may say (m3/recipes/*.yaml).

Unknown keys are refused.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from m3.data.recipe import Data
from m3.nesting import read_ladder
from m3.training.recipe.sections import (
    Adapter,
    Context,
    Distil,
    Evaluation,
    Hardware,
    HeldOut,
    NewModel,
    Optimiser,
    Parts,
    Scales,
    Schedule,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of a vision-language model over scales.

    `model` is a checkpoint folder to continue from; `new_model` draws one instead.
    `matryoshka_vis_token_scale`: the scales trained over (they become the checkpoint's trained
    scales). `scales`: all of them every step, or a seeded draw.
    `scale_weights`: of the scales in the loss, 1 where none is given. `distil`: coarser scales
        learn from the largest too.
    `memory`: `low` reads rows one at a time (m3/training/loop/row_by_row.py). `context`: more positions
    for the decoder of `model`. `reset_connector`: of `model`, drawn anew; a chain does so in its
    first stage. `reducer`: another token reducer for `model`, such as `{kind: attention_pool}`; its
    parameters are drawn. `report_to`: beside the run's own metrics. `architecture`: what `--dry-run` lays
    out where `model` is not on the machine (m3/recipes/architectures).
    """

    run: str
    parts: Parts
    data: Data
    schedule: Schedule
    matryoshka_vis_token_scale: tuple[int | str, ...]
    scales: Scales = "all"
    model: str | None = None
    new_model: NewModel | None = None
    architecture: str | None = None
    reset_connector: bool = False
    reducer: dict | None = None
    context: Context | None = None
    memory: Literal["packed", "low"] = "packed"
    scale_weights: dict[int | str, float] | None = None
    distil: Distil | None = None
    held_out: HeldOut | None = None
    evaluation: Evaluation | None = None
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    adapter: Adapter | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.new_model is None):
            raise ValueError(
                "recipe: give exactly one of model (a checkpoint folder) and new_model"
            )
        if self.reset_connector and self.parts.connector == "frozen":
            raise ValueError(
                "recipe: reset_connector draws the connector anew and parts.connector is frozen, "
                "so it would stay random; give "
                "parts.connector a learning rate, or leave reset_connector out"
            )
        if self.reducer is not None and (self.model is None or self.adapter is not None):
            raise ValueError(
                "recipe: reducer exchanges that of a `model` whose own weights train; for a "
                "new_model say new_model.config.nesting, and give an adapter to a run of its own "
                "afterwards"
            )
        if self.context is not None and (self.model is None or self.adapter is not None):
            raise ValueError(
                "recipe: context extends the decoder of a `model` whose own weights train; for a "
                "new_model say "
                "max_position_embeddings in its text_config, and extend a model before it gets an "
                "adapter"
            )
        _check_length(self.schedule, self.optimiser)
        self._check_scales()
        self._check_memory()
        if self.adapter is not None:
            self._check_adapter(self.adapter)
        if self.parts.new_tokens is not None and self.trains_tables:
            raise ValueError(
                "recipe: parts.new_tokens is of rows whose tables are frozen, and here the decoder "
                "trains whole; leave it out"
            )

    @property
    def trains_tables(self) -> bool:
        """Tell whether the decoder's embedding and output layer train whole."""
        part_rates = self.parts
        return (
            part_rates.decoder != "frozen"
            and part_rates.decoder_last_layers is None
            and self.adapter is None
        )

    def _check_scales(self) -> None:
        """Scales, and what is said of them elsewhere in the recipe."""
        scales, weights = self.matryoshka_vis_token_scale, self.scale_weights or {}
        if not scales:
            raise ValueError("recipe: matryoshka_vis_token_scale must list at least one scale")
        ladder = read_ladder(scales)
        most_tokens = max(budget.tokens for budget in ladder)
        if min(budget.tokens for budget in ladder) < 1 or len(ladder) < len(scales):
            raise ValueError(
                "recipe: matryoshka_vis_token_scale takes numbers of tokens from 1 (36, or 36@48 "
                f"of an image seen at 48 pixels), each once, got {list(scales)}"
            )
        if not set(read_ladder(weights)) <= set(ladder) or not all(
            0 < weight < math.inf for weight in weights.values()
        ):
            raise ValueError(
                f"recipe: scale_weights {self.scale_weights} must be positive and of the trained "
                f"scales {list(scales)}; leave a "
                "scale out of those rather than giving it 0"
            )
        if self.distil is not None and (len(scales) == 1 or self.scales == "random"):
            raise ValueError(
                "recipe: distil compares scales of one step, and a step of this recipe trains one; "
                "take scales: all or sandwich "
                "over several, or leave distil out"
            )
        limit = self.data.longest
        if limit is not None and limit <= most_tokens and self.data.may_show_images:
            raise ValueError(
                f"recipe: no sample with an image fits {limit} tokens (data.max_length, "
                "data.pack_length) at scale "
                f"{most_tokens}; raise the limit, or leave that scale out"
            )

    def _check_memory(self) -> None:
        """`memory: low`, which reads one row at a time."""
        if self.memory == "low" and self.hardware.deepspeed is not None:
            raise ValueError(
                "recipe: memory: low goes backward several times a step, which DeepSpeed does not "
                "take; with it, set "
                "hardware.activation_checkpointing: true, or launch with torchrun"
            )
        if self.memory == "low" and self.distil is not None:
            raise ValueError(
                "recipe: memory: low reads one row at a time, and distil compares tokens of "
                "several rows; set memory: packed "
                "(hardware.activation_checkpointing: true saves memory too), or leave distil out"
            )

    def _check_adapter(self, adapter: Adapter) -> None:
        if self.model is None:
            raise ValueError(
                "recipe: an adapter needs a model to adapt; give `model`, not `new_model`"
            )
        if self.parts.decoder == "frozen":
            raise ValueError(
                "recipe: parts.decoder is the learning rate of the adapters; it cannot be frozen"
            )
        if (self.parts.vision_last_layers, self.parts.decoder_last_layers) != (None, None):
            raise ValueError(
                "recipe: parts.*_last_layers does not go with an adapter; PEFT trains parts whole"
            )
        if adapter.quantise is not None and self.hardware.deepspeed is not None:
            raise ValueError(
                "recipe: adapter.quantise does not go with hardware.deepspeed; run it with torchrun"
            )


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """Pre-training of a vision encoder on dense patch labels (m3/training/loop/patch_labels.py)."""

    run: str
    vision_config: dict
    data: str
    learning_rate: float
    schedule: Schedule
    workers: int = 0
    optimiser: Optimiser = field(default_factory=Optimiser)
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        _check_length(self.schedule, self.optimiser)
        for setting_name, given_setting in (
            ("attention", self.hardware.attention),
            ("liger", self.hardware.liger),
        ):
            if given_setting:
                raise ValueError(
                    f"recipe: hardware.{setting_name} is of a whole model's recipe; a tower's does "
                    "not read it, leave it out"
                )


def _check_length(schedule: Schedule, optimiser: Optimiser) -> None:
    """A warm-up in steps must end before the run does."""
    if schedule.steps is not None and optimiser.warmup >= max(schedule.steps, 1.0):
        raise ValueError(
            f"recipe: optimiser.warmup is {optimiser.warmup:g} steps, and the run ends after "
            f"schedule.steps {schedule.steps}; "
            "take fewer, or a share of the steps (a number below 1)"
        )
