"""Recipe -> model and processor: continue from a checkpoint folder, or draw new weights around a
tower and a tokenizer.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import AutoModel

from m3.inference.loading import load_processor, load_weights, read_config
from m3.inference.quantisation import get_quantisation
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.backbone import build_connector
from m3.model.packed_attention import PACKED_ATTENTION
from m3.processing import M3Processor
from m3.training.recipe.sections import NewModel
from m3.training.setup.compiling import compile_layers
from m3.training.setup.liger import apply_liger
from m3.training.setup.resolved import ResolvedRun

logger = logging.getLogger(__name__)


def build(resolved: ResolvedRun) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """The model and its processor, with the recipe's scales as the trained ones.

    Raises:
        ValueError: a scale that the model's grid cannot reach; rows that this decoder cannot pack.
    """
    recipe, hardware = resolved.recipe, resolved.recipe.hardware
    scales = recipe.matryoshka_vis_token_scale
    if recipe.model is not None:
        # what is frozen needs no more
        is_half = recipe.adapter is not None and hardware.precision == "bfloat16"
        model, processor = load_checkpoint(
            recipe.model,
            scales,
            hardware.experts_implementation,
            None if recipe.adapter is None else recipe.adapter.quantise,
            torch.bfloat16 if is_half else torch.float32,
            resolved.config,
            draws_reducer=recipe.reducer is not None,
        )
    else:
        assert recipe.new_model is not None  # Recipe makes sure of one of them
        model = _new_model(recipe.new_model, resolved.config)
        model, processor = train_at(model, resolved.processor, scales)
        model.set_experts_implementation(hardware.experts_implementation)
    if recipe.reset_connector:
        model.model.connector = build_connector(model.config).apply(model._init_weights)
    if hardware.attention not in (None, PACKED_ATTENTION):
        model.set_attn_implementation(hardware.attention)
    if resolved.row_attention.implementation is not None:
        model.model.language_model.set_attn_implementation(resolved.row_attention.implementation)
    if hardware.liger:
        apply_liger(model)
    if hardware.compile:
        compile_layers(model)
    return model, processor


def load_checkpoint(
    path: str,
    scales: Sequence[int | str],
    experts_implementation: str = "grouped_mm",
    quantise: str | None = None,
    dtype: torch.dtype = torch.float32,
    config: M3Config | None = None,
    draws_reducer: bool = False,
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """A checkpoint folder, its weights in `dtype` (the decoder's packed if `quantise` says so), to
    be trained at `scales`.

    `config`: by default the checkpoint's own. `draws_reducer`: its reducer may be another than the
    checkpoint's, and is drawn then.

    A budget router of the checkpoint is left out: it knows the weights as they were.

    Raises:
        ValueError: weights that are missing or left over.
    """
    model = load_weights(
        path,
        config or read_config(path),
        dtype,
        quantisation=None if quantise is None else get_quantisation(quantise),
        new_weights="model.reducer." if draws_reducer else None,
    )
    model.config.budget_choice, model.model.budget_router = None, None
    model.set_experts_implementation(experts_implementation)
    return train_at(model, load_processor(path), scales)


def warn_of_router(path: str) -> None:
    """Warn where a checkpoint that is trained further has a budget router, which `load_checkpoint`
    leaves out.
    """
    if read_config(path).budget_choice is not None:
        logger.warning(
            "the budget router of %s is left out: it was calibrated for its weights as they are. "
            "Train one for the new weights at the end (docs/auto.md)",
            path,
        )


def train_at(
    model: M3ForConditionalGeneration, processor: M3Processor, scales: Sequence[int | str]
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """Writes `scales` into the configurations as the trained ones."""
    processor.nesting = processor.nesting | {"kind": model.config.nesting.kind}
    processor.train_at(scales)
    nesting = replace(model.config.nesting, trained_scales=tuple(processor.trained_scales))
    model.config.nesting = nesting
    # what rows are filled with
    model.config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def _new_model(spec: NewModel, config: M3Config) -> M3ForConditionalGeneration:
    model = M3ForConditionalGeneration(config)
    if spec.vision_tower is not None:
        tower = AutoModel.from_pretrained(spec.vision_tower)
        model.model.vision_tower.load_state_dict(tower.state_dict())
    return model
