"""Recipe -> model and processor: continue from a checkpoint folder, or draw new weights around a
tower and a tokenizer.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from m3.checkpoints.processors import IMAGE_TOKEN, make_processor
from m3.inference.quantisation import get_quantisation, unquantised_modules
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.backbone import build_connector
from m3.model.configuration import decode_nesting
from m3.model.packed_attention import PACKED_ATTENTION
from m3.processing import M3Processor
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import Context, NewModel
from m3.training.setup.compiling import compile_layers
from m3.training.setup.context_length import extended
from m3.training.setup.liger import apply_liger
from m3.training.setup.row_attention import RowAttention, choose_row_attention


def build(
    recipe: Recipe, attention: RowAttention | None = None
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """The model and its processor, with the recipe's scales as the trained ones.

    attention: of the decoder, chosen here by default; under ZeRO-3, which shards every model that
        is drawn, chosen before.

    Raises:
        ValueError: a scale that the model's grid cannot reach; rows that this decoder cannot pack.
    """
    scales, hardware = recipe.matryoshka_vis_token_scale, recipe.hardware
    if recipe.model is not None:
        quantise = None if recipe.adapter is None else recipe.adapter.quantise
        # what is frozen needs no more
        is_half = recipe.adapter is not None and hardware.precision == "bfloat16"
        dtype = torch.bfloat16 if is_half else torch.float32
        model, processor = load_checkpoint(
            recipe.model,
            scales,
            hardware.experts_implementation,
            quantise,
            dtype,
            recipe.context,
            recipe.reducer,
        )
    else:
        assert recipe.new_model is not None  # Recipe makes sure of one of them
        model, processor = train_at(*_new(recipe.new_model), scales)
        model.set_experts_implementation(hardware.experts_implementation)
    if recipe.reset_connector:
        model.model.connector = build_connector(model.config).apply(model._init_weights)
    if hardware.attention not in (None, PACKED_ATTENTION):
        model.set_attn_implementation(hardware.attention)
    attention = attention or choose_row_attention(recipe, model.config)
    if attention.implementation is not None:
        model.model.language_model.set_attn_implementation(attention.implementation)
    if hardware.liger:
        apply_liger(model)
    if hardware.compile:
        compile_layers(model)
    return model, processor


def build_processor(recipe: Recipe) -> M3Processor:
    """The processor alone, as `build` would give it; the decoder's weights are neither read nor
    drawn.
    """
    if recipe.model is not None:
        processor = M3Processor.from_pretrained(recipe.model)
    else:
        assert recipe.new_model is not None  # Recipe makes sure of one of them
        processor = _new_processor(recipe.new_model, new_config(recipe.new_model))
    if recipe.reducer is not None:
        processor.nesting = processor.nesting | {"kind": recipe.reducer.get("kind", "grid_pool")}
    processor.check_scales(recipe.matryoshka_vis_token_scale)
    processor.nesting = processor.nesting | {
        "trained_scales": sorted(recipe.matryoshka_vis_token_scale)
    }
    return processor


def load_checkpoint(
    path: str,
    scales: Sequence[int],
    experts_implementation: str = "grouped_mm",
    quantise: str | None = None,
    dtype: torch.dtype = torch.float32,
    context: Context | None = None,
    reducer: Mapping[str, Any] | None = None,
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """A checkpoint folder, its weights in `dtype` (the decoder's packed if `quantise` says so), to
    be trained at `scales`.

    Raises:
        ValueError: weights that are missing or left over; transformers would draw them at random,
            or drop them.
    """
    quantisation_row = None if quantise is None else get_quantisation(quantise)
    config = exchange_reducer(extended(M3Config.from_pretrained(path), context), reducer)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    packing = (
        None
        if quantisation_row is None
        else quantisation_row.config(unquantised_modules(config), dtype, device)
    )
    loaded = M3ForConditionalGeneration.from_pretrained(
        path, config=config, dtype=dtype, quantization_config=packing, output_loading_info=True
    )
    # since the information is asked for
    model, loading_report = cast(tuple[M3ForConditionalGeneration, dict], loaded)
    wrong = {
        key_kind: sorted(wrong_keys)
        for key_kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (
            wrong_keys := [
                n for n in loading_report[key_kind] if reducer is None or not _is_of_reducer(n)
            ]
        )
    }
    if wrong:
        raise ValueError(f"{path} does not hold the weights of its configuration: {wrong}")
    if quantisation_row is not None and quantisation_row.after_loading is not None:
        quantisation_row.after_loading(model)
    model.set_experts_implementation(experts_implementation)
    return train_at(model, M3Processor.from_pretrained(path), scales)


def exchange_reducer(config: M3Config, reducer: Mapping[str, Any] | None) -> M3Config:
    """The configuration with another token reducer, where one is given.

    Raises:
        ValueError: an unknown kind or setting.
    """
    if reducer is None:
        return config
    if "trained_scales" in reducer:
        raise ValueError(
            "recipe: reducer takes no trained_scales; they are matryoshka_vis_token_scale"
        )
    changed = deepcopy(config)
    changed.nesting = decode_nesting(
        {**reducer, "trained_scales": list(config.nesting.trained_scales)}
    )
    return changed


def _is_of_reducer(name: str | tuple[str, ...]) -> bool:
    """Tell by the name of a weight whether it belongs to the token reducer."""
    return (name if isinstance(name, str) else name[0]).startswith("model.reducer.")


def train_at(
    model: M3ForConditionalGeneration, processor: M3Processor, scales: Sequence[int]
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """Writes `scales` into the configurations as the trained ones."""
    processor.nesting = processor.nesting | {"kind": model.config.nesting.kind}
    processor.check_scales(scales)
    nesting = replace(model.config.nesting, trained_scales=tuple(scales))
    model.config.nesting = nesting
    # what rows are filled with
    model.config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    processor.nesting = {"kind": nesting.kind, "trained_scales": sorted(scales)}
    return model, processor


def new_config(spec: NewModel) -> M3Config:
    """The configuration of a model of new weights: what the recipe says, the tokenizer's ids,
    the tower's configuration.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.tokenizer)
    config_options = dict(spec.config)
    image_token = config_options.pop("image_token", IMAGE_TOKEN)
    text_options = dict(config_options.pop("text_config"))
    text_options |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tied = text_options.get("tie_word_embeddings", False)
    if (
        config_options.setdefault("tie_word_embeddings", tied) != tied
        and "tie_word_embeddings" in text_options
    ):
        raise ValueError(
            f"new_model.config: tie_word_embeddings is {config_options['tie_word_embeddings']}, and "
            f"{tied} in its text_config; say it once"
        )
    if spec.vision_tower is not None:
        config_options["vision_config"] = AutoConfig.from_pretrained(spec.vision_tower)
    # of one token; a list only of several
    image_token_id = cast(int, tokenizer.convert_tokens_to_ids(image_token))
    return M3Config(text_config=text_options, image_token_id=image_token_id, **config_options)


def _new(spec: NewModel) -> tuple[M3ForConditionalGeneration, M3Processor]:
    config = new_config(spec)
    model = M3ForConditionalGeneration(config)
    if spec.vision_tower is not None:
        tower = AutoModel.from_pretrained(spec.vision_tower)
        model.model.vision_tower.load_state_dict(tower.state_dict())
    return model, _new_processor(spec, config)


def _new_processor(spec: NewModel, config: M3Config) -> M3Processor:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.tokenizer)
    image_processor = AutoImageProcessor.from_pretrained(
        spec.vision_tower or spec.tokenizer, backend="pil"
    )
    return make_processor(
        config, image_processor, tokenizer, None, spec.config.get("image_token", IMAGE_TOKEN)
    )
