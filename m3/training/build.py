"""Recipe -> model and processor: continue from a checkpoint folder, or draw new weights around a tower and a tokenizer."""

import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from m3.model import M3Config, M3ForConditionalGeneration, NestingConfig
from m3.processing import M3Processor
from m3.training.recipe import NewModel, Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build(recipe: Recipe) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """The model and its processor, with the recipe's scales as the trained ones.

    Raises:
        ValueError: a scale that the model's grid cannot reach.
    """
    scales = recipe.matryoshka_vis_token_scale
    if recipe.model is not None:
        model = M3ForConditionalGeneration.from_pretrained(
            recipe.model, dtype=torch.float32, experts_implementation=recipe.hardware.experts_implementation
        )
        processor = M3Processor.from_pretrained(recipe.model)
    else:
        assert recipe.new_model is not None  # Recipe makes sure of one of them
        model, processor = _new(recipe.new_model, scales)
        model.set_experts_implementation(recipe.hardware.experts_implementation)
    kind = model.config.nesting.kind
    processor.counts(scales)
    model.config.nesting = NestingConfig(kind=kind, trained_scales=scales)
    processor.nesting = {"kind": kind, "trained_scales": sorted(scales)}
    return model, processor


def _new(spec: NewModel, scales: tuple[int, ...]) -> tuple[M3ForConditionalGeneration, M3Processor]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.tokenizer)
    options = dict(spec.config)
    image_token = options.pop("image_token", "<image>")
    text = dict(options.pop("text_config"))
    text |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tower = None if spec.vision_tower is None else AutoModel.from_pretrained(spec.vision_tower)
    if tower is not None:
        options["vision_config"] = tower.config
    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    config = M3Config(text_config=text, image_token_id=image_token_id, **options)
    model = M3ForConditionalGeneration(config)
    if tower is not None:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    image_processor = AutoImageProcessor.from_pretrained(spec.vision_tower or spec.tokenizer, backend="pil")
    nesting = {"kind": config.nesting.kind, "trained_scales": sorted(scales)}
    return model, M3Processor(image_processor, tokenizer, grid=config.grid, nesting=nesting, image_token=image_token)
