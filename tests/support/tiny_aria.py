"""A tiny random Aria as transformers saves it: real counts of queries and experts, tiles of 28
and 56 pixels.
"""

from pathlib import Path

import torch
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaImageProcessorPil,
    PreTrainedTokenizerFast,
)

from m3.data.synthetic.tokenizer import build_tokenizer

SMALL, LARGE = 28, 56  # pixels: 2 x 2 and 4 x 4 patches, as 490 and 980 are 35 x 35 and 70 x 70
LEAST = 19  # as 336 is of 980
QUERIES = {4: 128, 16: 256}


def aria_tokenizer() -> PreTrainedTokenizerFast:
    """The suite's tokenizer with Aria's image tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|img|>", "<fim_prefix>", "<fim_suffix>"], special_tokens=True)
    return tokenizer


def aria_config(
    queries: dict[int, int] = QUERIES, image_size: int = LARGE, experts: int = 64, width: int = 32
) -> AriaConfig:
    """2 shared and `experts` routed experts, 6 of them for each token."""
    tokenizer = aria_tokenizer()
    vision = {
        "model_type": "idefics3_vision",
        "hidden_size": width,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "patch_size": 14,
        "image_size": image_size,
    }
    text = {
        "model_type": "aria_text",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 8,
        "moe_num_experts": experts,
        "moe_topk": 6,
        "moe_num_shared_experts": 2,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-5,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return AriaConfig(
        vision_config=vision,
        text_config=text,
        projector_patch_to_query_dict=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<|img|>"),
        dtype="float32",
    )


def aria_model(config: AriaConfig, seed: int = 0) -> AriaForConditionalGeneration:
    """Random weights, large enough that every part moves the logits."""
    torch.manual_seed(seed)
    model = AriaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    return model.eval()


def save_aria(
    folder: Path, config: AriaConfig, size: int = LARGE, least: int = LEAST
) -> AriaForConditionalGeneration:
    """A whole checkpoint folder."""
    model = aria_model(config)
    model.save_pretrained(folder)
    aria_tokenizer().save_pretrained(folder)
    AriaImageProcessorPil(max_image_size=size, min_image_size=least).save_pretrained(folder)
    return model
