"""LoRA by PEFT: adapters on the decoder's layers, the small parts trained whole, and the adapter
merged at the end.

in: a model whose parts are chosen (m3/training/setup/parameter_groups.py) and an `Adapter`; out: a
`PeftModel` in which adapters stand for the decoder's weights. Routed experts are one parameter
`[experts, ...]` per projection, which PEFT reaches by `target_parameters`;
`target_modules="all-linear"` would silently leave them frozen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from m3.checkpoints.new_embeddings import EMBEDDING, OUTPUT
from m3.inference.adapters import add_adapter
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.anatomy import fused_experts
from m3.training.setup.build import load_checkpoint
from m3.training.setup.new_tokens import NewRows
from m3.training.setup.parameter_groups import part_of, router_names
from m3.training.setup.resolved import ResolvedRun

TOKEN_ROWS = ".trainable_tokens_delta."
"""In PEFT's names of parameters that are single rows of a table."""


def targets(model: M3ForConditionalGeneration) -> dict[str, list[str]]:
    """Modules of this model for each choice of `Adapter.targets`: names of linear modules, and of
    fused parameters.
    """
    decoder = model.model.language_model
    routers = model.model.routers
    blocks = [
        module
        for module in decoder.modules()
        if any(child in routers for child in module.children())
    ]
    beside_experts = {id(module) for block in blocks for module in block.modules()}
    target_names: dict[str, list[str]] = {
        "attention": [],
        "mlp": [],
        "shared_experts": [],
        "routed_experts": [],
    }
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module_name.startswith("model.language_model."):
            if "self_attn" in module_name.split("."):
                target_names["attention"].append(module_name)
            else:
                target_names["shared_experts" if id(module) in beside_experts else "mlp"].append(
                    module_name
                )
    target_names["routed_experts"] = [
        f"model.language_model.{name}" for name in fused_experts(decoder)
    ]
    return target_names


def lora_config(resolved: ResolvedRun, rows: NewRows | None = None) -> LoraConfig:
    """PEFT's configuration of the recipe's adapter.

    It is made before DeepSpeed is, under which shapes cannot be read off the weights.

    `rows`: of the embedding and the output layer, which train beside the adapters and are saved
        with them.

    Raises:
        ValueError: a target that the decoder does not have.
    """
    adapter = resolved.recipe.adapter
    assert adapter is not None  # only then is it asked for
    with torch.device("meta"):
        model = M3ForConditionalGeneration(resolved.config)
    target_names = targets(model)
    empty = [
        adapter_target for adapter_target in adapter.targets if not target_names[adapter_target]
    ]
    if empty:
        has = [target_name for target_name, module_names in target_names.items() if module_names]
        raise ValueError(
            f"adapter.targets: this decoder has no {', '.join(empty)}; it has {', '.join(has)}"
        )
    whole_parts = [
        part_name
        for part_name, rate in resolved.rates.items()
        if part_name in ("vision_tower", "connector", "reducer") and rate != "frozen"
        if list(model.get_submodule(f"model.{part_name}").parameters())
    ]
    routers = router_names(model) if resolved.recipe.parts.router not in (None, "frozen") else ()
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]  # a ratio: any number
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        target_modules=[
            target_name
            for adapter_target in adapter.targets
            if adapter_target != "routed_experts"
            for target_name in target_names[adapter_target]
        ],
        target_parameters=target_names["routed_experts"]
        if "routed_experts" in adapter.targets
        else None,
        modules_to_save=[f"model.{part_name}" for part_name in whole_parts] + list(routers) or None,
        trainable_token_indices=None  # tied tables are one to PEFT too
        if rows is None
        else {
            target_name.removesuffix(".weight"): list(rows.ids)
            for target_name in (EMBEDDING, OUTPUT)
        },
    )


def add_lora(
    model: M3ForConditionalGeneration,
    config: LoraConfig,
    rates: dict[str, float],
    seed: int,
    rows: NewRows | None = None,
) -> tuple[PeftModel, dict[str, float]]:
    """The model with fresh adapters, and the learning rate of each parameter that trains."""
    routers = router_names(model)
    by_part = {part_of(parameter_name, routers): rate for parameter_name, rate in rates.items()}
    torch.manual_seed(seed)  # loading draws differently from one to several processes
    adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]  # a PreTrainedModel
    assert isinstance(adapted, PeftModel)
    trained = [
        parameter_name
        for parameter_name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    ]
    if not is_deepspeed_zero3_enabled():  # which keeps float32 copies itself
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    learning_rates = {
        parameter_name: by_part[part_of(parameter_name, routers)] for parameter_name in trained
    }
    if rows is not None:
        learning_rates |= {
            parameter_name: rows.rate for parameter_name in trained if TOKEN_ROWS in parameter_name
        }
    return adapted, learning_rates


def merge(base: str, scales: Sequence[int | str], adapter: Path, folder: Path) -> None:
    """Writes the base with the adapter added into its weights, a ready checkpoint; added in
    float32, rounded once.
    """
    saved = cast(torch.dtype | None, M3Config.from_pretrained(base).dtype)  # decoded on loading
    model, processor = load_checkpoint(base, scales)
    merged = add_adapter(model, adapter, merge=True)
    # transformers' own has a signature that no checker reads
    nn.Module.to(merged, dtype=saved or torch.float32)
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
