"""Tiny random models of every decoder and vision type, by configuration alone."""

import torch

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.connectors import connector_config

VOCAB, IMAGE, PAD = 96, 3, 0

_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS: dict[str, dict] = {
    "aria_text": {
        "intermediate_size": 16,
        "moe_num_experts": 4,
        "moe_topk": 2,
        "moe_num_shared_experts": 2,
    },
    "qwen3_moe": {
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "mixtral": {
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
    },
    "llama": {"intermediate_size": 48},
    "qwen3": {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
}
MOE = ("aria_text", "qwen3_moe", "mixtral")

_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION: dict[str, dict] = {
    "siglip_vision_model": {"image_size": 48, "patch_size": 4, "vision_use_head": False},
    "clip_vision_model": {"image_size": 48, "patch_size": 4},
    "siglip2_vision_model": {"num_patches": 144, "patch_size": 4, "vision_use_head": False},
    "dinov2": {"image_size": 48, "patch_size": 4, "mlp_ratio": 2},
    "idefics3_vision": {"image_size": 48, "patch_size": 4},
    "internvl_vision": {"image_size": 48, "patch_size": 4},
}
CONNECTORS: dict[str, dict] = {
    "mlp2x_gelu": {},
    "linear": {},
    "pixel_shuffle": {},
    "resampler": {"num_queries": 36, "num_heads": 4},
    "aria_projector": {"num_queries": 36, "num_heads": 4, "patch_queries": [[144, 36]]},
}
"""Settings of each connector for 144 patches and width 32."""
WITH_CLASS_TOKEN = ("clip_vision_model", "dinov2", "internvl_vision")


def make_config(
    decoder: str = "aria_text",
    vision: str = "siglip_vision_model",
    vocab_size: int = VOCAB,
    **changes,
) -> M3Config:
    """A configuration of 144 visual tokens and width 32."""
    vision_config = {"model_type": vision, **_VISION, **VISION[vision]}
    if vision == "dinov2":
        del vision_config["intermediate_size"]
    options = {
        "vision_config": vision_config,
        "text_config": {
            "model_type": decoder,
            **_TEXT,
            **DECODERS[decoder],
            "vocab_size": vocab_size,
        },
        "image_token_id": IMAGE,
        "drop_class_token": vision in WITH_CLASS_TOKEN,
        "nesting": {"kind": "grid_pool", "trained_scales": [1, 4, 9, 36, 144]},
        "router_balance_coef": 0.1,
        "router_z_coef": 0.01,
    }
    return M3Config(**(options | changes))


def make_connector(kind: str) -> dict[str, dict]:
    """Options of `make_config`: the connector, and a nesting that takes its tokens."""
    on_grid = isinstance(connector_config({"kind": kind} | CONNECTORS[kind]).grid((12, 12)), tuple)
    nesting = {"kind": "grid_pool" if on_grid else "query_prefix", "trained_scales": [1, 9]}
    return {"connector": {"kind": kind} | CONNECTORS[kind], "nesting": nesting}


def make_model(seed: int = 0, **options) -> M3ForConditionalGeneration:
    """Random weights, large enough that every part moves the logits."""
    torch.manual_seed(seed)
    model = M3ForConditionalGeneration(make_config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    return model.eval()


def prompt(scale: int, *text: int) -> list[int]:
    """Ids of a prompt with one image at `scale` and some text around it."""
    return [5, *[IMAGE] * scale, 6, *text]


def spans(ids: list[int], image_token_id: int) -> list[int]:
    """Lengths of the runs of placeholders."""
    runs: list[int] = []
    for position, token in enumerate(ids):
        if token == image_token_id:
            if position and ids[position - 1] == image_token_id:
                runs[-1] += 1
            else:
                runs.append(1)
    return runs


def batch(rows: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    """Pads rows to one length."""
    length = max(map(len, rows))
    pads = [[PAD] * (length - len(row)) for row in rows]
    ids = torch.tensor(
        [p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)]
    )
    ones = [
        [0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
        for p, r in zip(pads, rows, strict=True)
    ]
    return {"input_ids": ids, "attention_mask": torch.tensor(ones)}
