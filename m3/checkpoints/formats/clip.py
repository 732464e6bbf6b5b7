"""The CLIP towers that LLaVA and M3 checkpoints name by hub id, as literal data: nothing need be
fetched to read one.

From the `config.json` (its `vision_config`) and `preprocessor_config.json` of the repositories of
the same name (https://arxiv.org/abs/2103.00020).
"""

from collections.abc import Mapping
from typing import Any

_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
}
_PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}

KNOWN_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_LARGE, "image_size": 224},
}


def clip_preprocessing(image_size: int) -> dict[str, Any]:
    """The image processor's settings for a tower of `image_size` pixels."""
    crop = {"height": image_size, "width": image_size}
    return {**_PREPROCESSING, "size": {"shortest_edge": image_size}, "crop_size": crop}
