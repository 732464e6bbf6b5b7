"""A vision encoder from a checkpoint of its own: the encoder's model without weights, and the
table of its names.
"""

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from m3.checkpoints.keymap import Dropped, Keymap, Row

TEXT_SIDE = (
    Dropped("text_model.*", "the text encoder of a CLIP-like pair"),
    Dropped("text_projection.*", "the text encoder of a CLIP-like pair"),
    Dropped("visual_projection.*", "the projection into the space shared with text"),
    Dropped("logit_scale", "the temperature of contrastive training"),
    Dropped("logit_bias", "the temperature of contrastive training"),
    Dropped("*position_ids", "a buffer that counts upwards"),
)


def empty_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder on the meta device; of a pair of encoders (CLIP, SigLIP) the vision encoder.

    Raises:
        ValueError: no vision encoder.
    """
    vision = config.vision_config if "vision_config" in config.sub_configs else config
    if not {"patch_size", "num_channels"} <= vision.to_dict().keys():
        raise ValueError(
            f"a model of type {config.model_type} is no vision encoder: it has no patch_size"
        )
    with torch.device("meta"):
        return AutoModel.from_config(vision)


def tower_keymap(config: PreTrainedConfig) -> Keymap:
    """Every tensor of the encoder goes below `model.vision_tower`."""
    return Keymap((Row("*", "model.vision_tower.*"),), TEXT_SIDE)
