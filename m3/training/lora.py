"""LoRA by PEFT: adapters on the decoder's layers, the small parts trained whole, and the adapter
merged at the end.

in: a model whose parts are chosen (m3/training/parameter_groups.py) and an `Adapter`; out: a
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
from m3.inference.quantisation import fused_experts
from m3.model import M3Config, M3ForConditionalGeneration
from m3.training.build import load_checkpoint
from m3.training.new_tokens import NewRows
from m3.training.parameter_groups import chosen_rates, part_of, router_names
from m3.training.sections import Adapter, Parts

TOKEN_ROWS = ".trainable_tokens_delta."
"""In PEFT's names of parameters that are single rows of a table."""


def targets(model: M3ForConditionalGeneration) -> dict[str, list[str]]:
    """What each choice of `Adapter.targets` means for this model: names of linear modules, and
    of fused parameters.
    """
    decoder = model.model.language_model
    routers = model.model.routers
    blocks = [
        module
        for module in decoder.modules()
        if any(child in routers for child in module.children())
    ]
    beside_experts = {id(module) for block in blocks for module in block.modules()}
    found: dict[str, list[str]] = {
        "attention": [],
        "mlp": [],
        "shared_experts": [],
        "routed_experts": [],
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model.language_model."):
            if "self_attn" in name.split("."):
                found["attention"].append(name)
            else:
                found["shared_experts" if id(module) in beside_experts else "mlp"].append(name)
    names = {id(module): name for name, module in model.named_modules()}
    found["routed_experts"] = [
        f"{names[id(module)]}.{name}" for module, name in fused_experts(model)
    ]
    return found


def lora_config(
    config: M3Config, adapter: Adapter, parts: Parts, rows: NewRows | None = None
) -> LoraConfig:
    """PEFT's configuration.

    It is made before DeepSpeed is, under which shapes cannot be read off the weights.

    `rows`: of the embedding and the output layer, which train beside the adapters and are saved
        with them.

    Raises:
        ValueError: a target that the decoder does not have.
    """
    with torch.device("meta"):
        model = M3ForConditionalGeneration(config)
    found = targets(model)
    empty = [target for target in adapter.targets if not found[target]]
    if empty:
        has = [name for name, names in found.items() if names]
        raise ValueError(
            f"adapter.targets: this decoder has no {', '.join(empty)}; it has {', '.join(has)}"
        )
    whole = [
        part
        for part, rate in chosen_rates(parts).items()
        if part in ("vision_tower", "connector", "reducer") and rate != "frozen"
        if list(model.get_submodule(f"model.{part}").parameters())
    ]
    routers = router_names(model) if parts.router not in (None, "frozen") else ()
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]  # a ratio: any number
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        target_modules=[
            name
            for target in adapter.targets
            if target != "routed_experts"
            for name in found[target]
        ],
        target_parameters=found["routed_experts"] if "routed_experts" in adapter.targets else None,
        modules_to_save=[f"model.{part}" for part in whole] + list(routers) or None,
        trainable_token_indices=None  # tied tables are one to PEFT too
        if rows is None
        else {name.removesuffix(".weight"): list(rows.ids) for name in (EMBEDDING, OUTPUT)},
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
    by_part = {part_of(name, routers): rate for name, rate in rates.items()}
    torch.manual_seed(seed)  # loading draws differently from one to several processes
    adapted = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]  # a PreTrainedModel
    assert isinstance(adapted, PeftModel)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if not is_deepspeed_zero3_enabled():  # which keeps float32 copies itself
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    found = {name: by_part[part_of(name, routers)] for name in trained}
    if rows is not None:
        found |= {name: rows.rate for name in trained if TOKEN_ROWS in name}
    return adapted, found


def merge(base: str, scales: Sequence[int], adapter: Path, folder: Path) -> None:
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
