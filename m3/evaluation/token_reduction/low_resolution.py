"""The control `resolution`: the tower sees so few pixels that it has as many patches as the scale
asks for tokens.

In: `pixel_values [t, 3, H, W]` at the tower's own size. Out: the connector's tokens `[t, m, d]`.
For towers whose position embeddings transformers can interpolate, and connectors that give a token
per patch. Cheaper than pooling, in the tower too; what it loses, it loses before anything was seen.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from m3.evaluation.token_reduction.table import rectangle
from m3.model import M3ForConditionalGeneration
from m3.model.vision import vision_inputs
from m3.nesting import GridPool

TOWERS: dict[str, dict[str, bool]] = {
    "siglip_vision_model": {"interpolate_pos_encoding": True},
    "clip_vision_model": {"interpolate_pos_encoding": True},
    "dinov2": {},  # it always does
}
"""Vision towers that take images of other sizes -> what their forward needs to be told."""


@torch.no_grad()
def low_resolution_tokens(
    model: M3ForConditionalGeneration, pixel_values: Float[Tensor, "t 3 h w"], scale: int
) -> Float[Tensor, "t {scale} d"]:
    """Tokens of images shrunk (bicubic, antialiased) to one patch per token.

    Raises:
        ValueError: a tower or a connector that cannot do it.
    """
    config, tower_type = model.config, model.config.vision_config.model_type
    if tower_type not in TOWERS:
        raise ValueError(
            f"resolution: the tower {tower_type} takes images of one size; it can be "
            f"{', '.join(TOWERS)}"
        )
    rows, columns = rectangle(config.grid, "resolution")
    if (rows, columns) != vision_inputs(config.vision_config).grid(config.vision_config):
        raise ValueError(
            "resolution: the connector does not give a token per patch, so fewer patches are no "
            "fewer tokens"
        )
    down, across = GridPool().shape((rows, columns), scale)
    height, width = pixel_values.shape[-2:]
    small_size = (height // rows * down, width // columns * across)
    small = interpolate(pixel_values.float(), size=small_size, mode="bicubic", antialias=True).to(
        model.dtype
    )
    layer = config.vision_feature_layer
    tower_output = model.model.vision_tower(
        pixel_values=small, output_hidden_states=layer is not None, **TOWERS[tower_type]
    )
    features = (
        tower_output.last_hidden_state if layer is None else tower_output.hidden_states[layer]
    )
    return model.model.connector(features[:, 1:] if config.drop_class_token else features)
