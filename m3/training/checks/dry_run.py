"""Preview of a run before it starts: trained parameters, the global batch, tokens, memory, time.

in: a resolved recipe; out: lines of text. No weight is read: the model is laid out
on the meta device from the configuration of its checkpoint or, where that is not on this machine,
from the recipe's `architecture`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model

from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.hardware import Accelerator, accelerator, peak_flops
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.cost import CostModel
from m3.nesting import read_budget
from m3.processing import M3Processor
from m3.training.checks.memory_estimate import activation_bytes, memory_lines, read_sharding
from m3.training.loop.evaluations import check_folders
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import Evaluation
from m3.training.setup.context_length import check_context
from m3.training.setup.lora import lora_config
from m3.training.setup.new_tokens import (
    NewRows,
    describe,
    endless,
    new_rows,
    unsayable_tokens,
    warning,
)
from m3.training.setup.parameter_groups import PARTS, apply_parts, part_of, router_names
from m3.training.setup.resolved import ResolvedRun

TEXT_TOKENS = 120
"""Assumed of a sample, in the estimates of tokens and time."""
UTILISATION = 0.4
"""Of the peak, assumed in the estimate of time: what well-tuned dense training reaches."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of one part's parameters."""

    total: int
    trained: int


def plan(resolved: ResolvedRun, accelerator_name: str | None = None) -> str:
    """The lines that a run prints before it starts; memory and time for a row of
    m3/hardware.py:ACCELERATORS, or for this machine.

    Raises:
        ValueError: the global batch cannot be made up on so many devices, or nothing says what the
            model is.
    """
    recipe, config = resolved.recipe, resolved.config
    chip = None if accelerator_name is None else accelerator(accelerator_name)
    unsayable, processor = _unsayable(resolved)
    rows = new_rows(resolved, unsayable)
    check_sharding(recipe, rows)
    check_context(recipe, config)
    parameters = count_parameters(resolved, rows)
    plan_lines = [f"{'part':<14}{'parameters':>14}{'trained':>14}"]
    for part_name, part_parameters in parameters.items():
        plan_lines.append(
            f"{part_name:<14}{part_parameters.total / 1e6:>13.3f}M{part_parameters.trained / 1e6:>13.3f}M"
        )
    plan_lines += [_batch_line(resolved), *_size_lines(resolved, parameters, chip)]
    if recipe.evaluation is not None:
        plan_lines.append(_evaluation_line(recipe, recipe.evaluation, config))
    if rows is not None:
        plan_lines.append(describe(rows, processor))
    warned = (
        []
        if processor is None
        else [warning(unsayable, processor, rows), endless(resolved, processor)]
    )
    return "\n".join(
        [*plan_lines, *(f"WARNING: {sentence}" for sentence in warned if sentence is not None)]
    )


def _unsayable(resolved: ResolvedRun) -> tuple[dict[int, str], M3Processor | None]:
    """Tokens of the chat template that the model cannot say, and its processor; nothing where it
    is not on this machine.
    """
    recipe = resolved.recipe
    if recipe.model is None or not (Path(recipe.model) / "processor_config.json").is_file():
        return {}, None
    return unsayable_tokens(recipe, resolved.processor), resolved.processor


def check_sharding(recipe: Recipe, rows: NewRows | None = None) -> None:
    """A `ValueError` where ZeRO-3, which leaves each process a part of every weight, meets what
    needs whole ones.
    """
    if zero_stage(recipe) != 3:
        return
    if rows is not None and recipe.adapter is not None:
        raise ValueError(
            f"ZeRO-3 shards the tables of which {len(rows.ids)} rows (new tokens) train beside the "
            "adapter, and PEFT does not "
            "gather them; take scripts/deepspeed/zero2.json (ZERO=zero2), train the decoder "
            "without an adapter first, or set "
            "parts.new_tokens: frozen"
        )
    if recipe.hardware.compile:
        raise ValueError(
            "hardware.compile: ZeRO-3 fetches the weights of a layer while the layer runs, which "
            "its compiled form would not "
            "know; take scripts/deepspeed/zero2.json (ZERO=zero2), or set it to false"
        )


def count_parameters(resolved: ResolvedRun, rows: NewRows | None = None) -> dict[str, Parameters]:
    """By part, adapters included; nothing is allocated."""
    recipe = resolved.recipe
    with torch.device("meta"):
        model = M3ForConditionalGeneration(resolved.config)
        rates = apply_parts(model, recipe.parts)
        routers = router_names(model)
        whole_model = model
        if recipe.adapter is not None:
            whole_model = get_peft_model(model, lora_config(resolved, rows))  # pyright: ignore
            rates = {
                parameter_name: 0.0
                for parameter_name, parameter in whole_model.named_parameters()
                if parameter.requires_grad
            }
    total_counts, trained_counts = Counter[str](), Counter[str]()
    for parameter_name, parameter in whole_model.named_parameters():
        part_name = "adapters" if "lora_" in parameter_name else part_of(parameter_name, routers)
        if ".modules_to_save." in parameter_name:
            trained_counts[part_name] += parameter.numel()
            continue  # a second copy of what is counted already
        total_counts[part_name] += parameter.numel()
        trained_counts[part_name] += parameter.numel() if parameter_name in rates else 0
    if rows is not None and recipe.adapter is None:
        tables = sum(
            parameter_name in (EMBEDDING, OUTPUT)
            for parameter_name, _ in whole_model.named_parameters()
        )
        trained_counts["decoder"] += (
            tables * len(rows.ids) * resolved.config.text_config.hidden_size
        )
    return {
        part_name: Parameters(total_counts[part_name], trained_counts[part_name])
        for part_name in (*PARTS, "adapters")
        if total_counts[part_name]
    }


def _batch_line(resolved: ResolvedRun) -> str:
    schedule = resolved.recipe.schedule
    length = f"{schedule.epochs:g} epochs" if schedule.steps is None else f"{schedule.steps} steps"
    return (
        f"global batch    {resolved.step_samples} samples = {resolved.devices} devices x "
        f"{schedule.batch_size} x {resolved.accumulation} micro-steps; {length}"
    )


def _evaluation_line(recipe: Recipe, evaluation: Evaluation, config: M3Config) -> str:
    """A `ValueError` if a scale is out of reach, or a folder that is named not there."""
    check_folders(evaluation)
    scales = recipe.matryoshka_vis_token_scale if evaluation.scales is None else evaluation.scales
    for scale in scales:
        config.count(scale)
    documents = (
        "all documents" if evaluation.limit is None else f"{evaluation.limit} documents each"
    )
    return (
        f"evaluation      {', '.join(evaluation.tasks)} at {', '.join(map(str, scales))}, every "
        f"{evaluation.every} steps, {documents}"
    )


def _size_lines(
    resolved: ResolvedRun, parameters: dict[str, Parameters], chip: Accelerator | None
) -> list[str]:
    """Tokens, memory and time, all estimates for samples of one image."""
    recipe, config, samples = resolved.recipe, resolved.config, resolved.step_samples
    scales, data_section, schedule = recipe.matryoshka_vis_token_scale, recipe.data, recipe.schedule
    with_image = [config.count(scale) for scale in scales]
    drawn = {"all": len(scales), "sandwich": min(4, len(scales)), "random": 1}[recipe.scales]
    tokens = (sum(with_image) / len(scales) + TEXT_TOKENS) * drawn
    costs = CostModel.from_config(config)
    budget_costs = {scale: costs.cost(scale, TEXT_TOKENS) for scale in scales}
    read_flops = sum(cost.prefill_flops for cost in budget_costs.values()) * drawn / len(scales)
    # seen once at each resolution
    looks = {read_budget(scale).resolution: cost for scale, cost in budget_costs.items()}
    seen_flops = sum(cost.vision_flops + cost.connector_flops for cost in looks.values())
    passes = (
        4 if recipe.hardware.activation_checkpointing else 3
    )  # forward, backward twice that, and what is recomputed
    flops = samples * passes * (seen_flops + read_flops)
    size_lines = [
        f"per sample      {drawn} sequences, about {tokens:.0f} tokens ({TEXT_TOKENS} of text "
        "assumed, one image at most tiles)",
        f"per step        {samples * drawn} sequences, about {samples * tokens:.2e} tokens, "
        f"{flops:.2e} FLOP",
        "rows            "
        f"{'one sequence each, padded' if data_section.pack_length is None else f'packed, {data_section.pack_length} tokens'}",
        f"attention       {resolved.row_attention.reason}",
        *memory_lines(
            resolved,
            sum(part_parameters.total for part_parameters in parameters.values()),
            sum(part_parameters.trained for part_parameters in parameters.values()),
            activation_bytes(resolved, tokens, TEXT_TOKENS),
            None if chip is None else chip.memory_bytes,
        ),
    ]
    peak = peak_flops() if chip is None else chip.flops
    if peak is None:
        return [
            *size_lines,
            "time            unknown: the peak of this machine's processor is not in "
            "m3/hardware.py; --accelerator H100 estimates it for one that is",
        ]
    seconds = flops / (peak * UTILISATION * resolved.devices)
    total_hours = (
        "" if schedule.steps is None else f", {seconds * schedule.steps / 3600:.1f} h in all"
    )
    return [
        *size_lines,
        f"time            about {seconds:.2f} s a step{total_hours} (at {UTILISATION:.0%} of "
        f"the peak{'' if chip is None else f' of {chip.name}'}; estimate)",
    ]


def zero_stage(recipe: Recipe) -> int:
    """ZeRO stage of the recipe's DeepSpeed configuration; 0 without one."""
    return read_sharding(recipe).stage
