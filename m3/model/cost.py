"""Cost of reading an image at a scale, by formula: floating-point operations, cache, parameters
read.

In: a model (or its configuration: nothing is computed and no weight is allocated), a scale, a
number of text tokens, a batch size. Out: `Cost`. Seconds are measured
(m3/evaluation/cost/latency.py) or estimated for a named accelerator
(m3/evaluation/cost/roofline.py).

Conventions. One multiply-add is two operations. Only matrix products count (norms, activations,
softmax, rotary embeddings and the pooling are below 1 % of them). Attention counts the whole
square, as kernels without a causal shortcut compute it, and as torch's FlopCounterMode counts it.
With T tokens, weights W (number of elements), and a = heads x head dimension of a layer:

    vision    2 patches W_patch + sum over layers (2 T W_linear + 4 T^2 a)       pooling heads are left out
    connector `flops` of each (m3/model/connectors), and of the reducer at the scale
    prefill   sum over layers (2 P W_active + 4 P^2 a) + 2 W_head                P prompt tokens, head for the last one
    token     sum over layers (2 W_active + 4 C a) + 2 W_head                    C tokens in the cache, its own included
    W_active  attention, dense or shared expert, router: all; routed experts: top_k / experts of them

Vision and connector are per tile, at the resolution the image is seen at; an image that is cut has
several. The weights are read off the module tree, so a decoder that
transformers gains tomorrow needs no code here. A layer with a sliding window or without attention
(state space) is counted as full attention.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.anatomy import holds_experts, layer_stack
from m3.nesting import Budget, read_budget


@dataclass(frozen=True)
class Cost:
    """`batch_size` equal prompts run together: images at one scale, text, and the tokens generated
    after it.

    Tokens are those of one prompt; operations and bytes those of the whole batch. Parameters are
    read once for all its prompts, with the experts that their tokens reach when the router is
    balanced.
    """

    scale: int | str
    batch_size: int
    itemsize: int  # bytes of a number
    visual_tokens: int
    text_tokens: int
    vision_flops: int
    connector_flops: int
    prefill_flops: int
    # of the first generated token after the prompt; each further one adds 4 a per layer
    token_flops: int
    kv_cache_bytes: int  # keys and values of the prompts
    vision_parameter_bytes: int  # read while the tower sees, and so on
    connector_parameter_bytes: int
    prefill_parameter_bytes: int
    token_parameter_bytes: int  # read for each generated token

    @property
    def first_token_flops(self) -> int:
        """Everything up to the first answer token: the image is seen, connected and read."""
        return self.vision_flops + self.connector_flops + self.prefill_flops


@dataclass(frozen=True)
class StackWeights:
    """Elements of the matrices in a stack of layers, summed over the layers."""

    dense: int  # every token passes through these
    experts: int  # routed experts, all of them
    num_experts: int  # of a layer; 1 where there are none

    def active(self, top_k: int) -> int:
        """Elements that one token passes through."""
        return self.dense + self.experts * top_k // self.num_experts

    def reached(self, top_k: int, tokens: int) -> int:
        """Elements that `tokens` tokens reach together, in the mean, when every expert is
        equally likely.
        """
        return self.dense + round(self.experts * (1 - (1 - top_k / self.num_experts) ** tokens))


class CostModel:
    """The formulas of the module docstring for one model."""

    def __init__(self, model: M3ForConditionalGeneration, dtype: torch.dtype | None = None) -> None:
        """`dtype`: the number format of weights and cache, by default the model's."""
        config = model.config
        self.config = config
        vision_layers = layer_stack(model.model.vision_tower)
        decoder_layers = layer_stack(model.model.language_model)
        self.vision, self.vision_layers = stack_weights(vision_layers), len(vision_layers)
        self.decoder, self.decoder_layers = stack_weights(decoder_layers), len(decoder_layers)
        self.connector, self.reducer = model.model.connector, model.model.reducer
        self.top_k = model.model.router_top_k or 1
        self.head = model.lm_head.weight.numel()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.bytes = (dtype or model.dtype).itemsize

    @classmethod
    def from_config(cls, config: M3Config, dtype: torch.dtype = torch.float32) -> "CostModel":
        """Without weights: the modules are laid out on the meta device."""
        with torch.device("meta"):
            return cls(M3ForConditionalGeneration(config), dtype)

    def cost(
        self,
        scale: int | str | Budget,
        text_tokens: int,
        images: int = 1,
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
    ) -> Cost:
        """Cost of `batch_size` prompts, each of `images` images at the budget `scale` and
        `text_tokens` further tokens.

        `size`: (height, width) of the images in pixels, where they are cut into tiles; by default
            those with most tiles.

        Raises:
            ValueError: a scale that the grid cannot reach; the reachable ones are listed.
        """
        config, budget = self.config, read_budget(scale)
        visual = images * config.count(budget, size)
        seen_tiles = {budget.resolution: images * config.tiles(budget.resolution, size).number}
        return self.prompt_cost(budget.setting, visual, text_tokens, seen_tiles, batch_size)

    def prompt_cost(
        self,
        scale: int | str,
        visual_tokens: int,
        text_tokens: int,
        seen_tiles: Mapping[int | None, int],
        batch_size: int = 1,
    ) -> Cost:
        """Cost of any prompt: `visual_tokens` of pictures that were seen as so many tiles at each
        resolution (None: the largest).

        `scale` is a label; where it is a budget, the reducer counts as at its tokens.
        """
        tokens = _scale_of_label(scale)
        prompt, batch = visual_tokens + text_tokens, batch_size
        text = self.config.text_config
        width = self.decoder_layers * text.num_attention_heads * head_dim(text)
        kv_width = self.decoder_layers * 2 * text.num_key_value_heads * head_dim(text)
        active = self.decoder.active(self.top_k)
        has_images = any(seen_tiles.values())
        tower = self.vision.dense + self.patch_weights() if has_images else 0
        between = [*self.connector.parameters(), *self.reducer.parameters()]
        connector = sum(p.numel() for p in between) if has_images else 0
        return Cost(
            scale=scale,
            batch_size=batch,
            itemsize=self.bytes,
            visual_tokens=visual_tokens,
            text_tokens=text_tokens,
            vision_flops=batch
            * sum(tiles * self.vision_flops(side) for side, tiles in seen_tiles.items()),
            connector_flops=batch
            * sum(
                tiles * (self.connector_flops(side) + self.reducer_flops(tokens, side))
                for side, tiles in seen_tiles.items()
            ),
            prefill_flops=batch * (2 * prompt * active + 4 * prompt**2 * width + 2 * self.head),
            token_flops=batch * (2 * active + 4 * (prompt + 1) * width + 2 * self.head),
            kv_cache_bytes=batch * prompt * kv_width * self.bytes,
            vision_parameter_bytes=tower * self.bytes,
            connector_parameter_bytes=connector * self.bytes,
            prefill_parameter_bytes=(self.decoder.reached(self.top_k, batch * prompt) + self.head)
            * self.bytes,
            token_parameter_bytes=(self.decoder.reached(self.top_k, batch) + self.head)
            * self.bytes,
        )

    def patches(self, resolution: int | None = None) -> int:
        """Patches of a tile of an image seen at a resolution."""
        return math.prod(self.config.patch_grid(resolution))

    def patch_weights(self) -> int:
        """Elements of the projection of one patch of pixels."""
        vision = self.config.vision_config
        patch = vision.patch_size
        area = patch**2 if isinstance(patch, int) else math.prod(patch)
        return vision.num_channels * area * vision.hidden_size

    def vision_flops(self, resolution: int | None = None) -> int:
        """The tower on one tile of an image seen at a resolution.

        All its layers run, whichever of them the features are taken from.
        """
        patches = self.patches(resolution)
        tokens = patches + int(self.config.drop_class_token)
        attention = 4 * tokens**2 * self.vision_layers * self.config.vision_config.hidden_size
        return 2 * patches * self.patch_weights() + 2 * tokens * self.vision.dense + attention

    def connector_flops(self, resolution: int | None = None) -> int:
        """The connector on one tile; it comes before the nesting, so it costs the same at every
        scale.
        """
        return self.connector.flops(self.patches(resolution))

    def reducer_flops(self, tokens: int, resolution: int | None = None) -> int:
        """The reducer on one tile, at so many tokens of it."""
        return self.reducer.flops(tokens, self.config.grid_at(resolution))


def _scale_of_label(label: int | str) -> int:
    """Tokens per tile of a budget; 0 of a label that is none, as of a schedule over frames."""
    try:
        return read_budget(label).tokens
    except ValueError:
        return 0


def stack_weights(layers: nn.ModuleList) -> StackWeights:
    """Adds up the matrices: linear layers, routers kept as a bare `weight [experts, d]`, experts
    as `[experts, d, e]`.
    """
    dense, experts, num_experts = 0, 0, 1
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            dense += module.weight.numel()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if holds_experts(parameter):
                experts += parameter.numel()
                num_experts = parameter.shape[0]
            elif parameter.ndim == 2 and name == "weight":
                dense += parameter.numel()
    return StackWeights(dense, experts, num_experts)


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head; configurations without the field mean hidden size / heads."""
    stated = config.to_dict().get("head_dim")
    return stated if stated is not None else config.hidden_size // config.num_attention_heads
