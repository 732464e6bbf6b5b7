"""Long context: a decoder reads more positions than before, after a stage of training on long
samples.

in: a model's configuration and the recipe's `context`; out: the configuration with so many
positions, rotated by another base where one is given. A larger base turns slower, so that far
positions stay within angles that were seen before ("adjusted base frequency", Xiong et al.,
https://arxiv.org/abs/2309.16039; Aria's 64K stage, https://arxiv.org/abs/2410.05993). No weight
changes here.
"""

from copy import deepcopy

from m3.model import M3Config
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import Context


def extended(config: M3Config, context: Context | None) -> M3Config:
    """A copy with the positions of `context`; `config` itself without one.

    Raises:
        ValueError: fewer positions than there are, or rotations that one base does not describe.
    """
    if context is None:
        return config
    config = deepcopy(config)
    text = config.text_config
    if context.positions < text.max_position_embeddings:
        raise ValueError(
            f"context.positions is {context.positions}, and the decoder has "
            f"{text.max_position_embeddings} already; give more"
        )
    text.max_position_embeddings = context.positions
    if context.rope_theta is not None:
        rotations = text.rope_parameters
        if rotations.get("rope_type") != "default":
            raise ValueError(
                "context.rope_theta is for plain rotary positions, and the decoder has "
                f"{rotations}; change them in the "
                "checkpoint's config.json, and leave rope_theta out"
            )
        text.rope_parameters = rotations | {"rope_theta": context.rope_theta}
    return config


def check_context(recipe: Recipe, config: M3Config) -> None:
    """A `ValueError` where samples may be longer than the positions of `config`, which is the
    recipe's own, extended.
    """
    longest, positions = recipe.data.longest, config.text_config.max_position_embeddings
    if longest is not None and longest > positions:
        raise ValueError(
            f"data allows samples of {longest} tokens, and the decoder has {positions} positions; "
            "set data.max_length to "
            f"{positions} or less, or context.positions to {longest} or more"
        )
