"""A checkpoint folder of the smallest model with the tiny tokenizer: 36 tokens per image, one
layer of each part.
"""

from pathlib import Path

from tiny_models import make_config
from transformers import SiglipImageProcessorPil

from m3.data.synthetic.tokenizer import build_tokenizer
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor

_LAYER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_small(path: Path) -> Path:
    """Writes model and processor."""
    tokenizer = build_tokenizer()
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": 24,
        "patch_size": 4,
        "vision_use_head": False,
    } | _LAYER
    text = {"model_type": "llama", "vocab_size": len(tokenizer)} | _LAYER
    nesting = {"kind": "grid_pool", "trained_scales": [1, 9]}
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = make_config(
        vision_config=vision, text_config=text, nesting=nesting, image_token_id=image_token_id
    )
    image_processor = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    M3ForConditionalGeneration(config).save_pretrained(path)
    M3Processor(image_processor, tokenizer, (6, 6), nesting).save_pretrained(path)
    return path
