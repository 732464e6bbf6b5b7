"""Differences between vision encoders, as one table: the grid of their patches and the inputs of
their forward.

in: `pixel_values [t, 3, H, W]`, tiles or whole images, and `pixel_mask [t, H, W]` where they are
    padded;
out: the keyword arguments that the encoder's own `forward` takes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one size, and which of the batch's tiles they are: `index [g]`."""

    index: Int[Tensor, " g"]
    pixel_values: Float[Tensor, "g 3 h w"]
    pixel_mask: Bool[Tensor, "g h w"] | None


class VisionInputs(ABC):
    """One row of `VISION_INPUTS`."""

    takes_padding = False
    """Whether the encoder is told which pixels are padding."""

    @abstractmethod
    def grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        """(rows, columns) of patches of an image."""

    @abstractmethod
    def image_size(self, config: PreTrainedConfig) -> tuple[int, int]:
        """(height, width) in pixels that `pixel_values` must have."""

    @abstractmethod
    def inputs(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> dict[str, Tensor | bool]:
        """Keyword arguments of the encoder's forward. `pixel_mask`: which pixels are no padding;
        None where all are.
        """

    def grid_at(self, config: PreTrainedConfig, side: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of `side` pixels instead of the encoder's own
        size.

        Raises:
            ValueError: a side that patches do not fill, or an encoder that sees one size alone.
        """
        rows, columns = _pair(config.patch_size)
        height, width = self.image_size(config)
        if side % rows or side % columns or height != width or side > height:
            raise ValueError(
                f"the encoder {config.model_type} sees squares of up to {min(height, width)} "
                f"pixels in patches of {rows} x {columns}: resolution {side} is no multiple of a "
                "patch up to that"
            )
        return side // rows, side // columns

    def groups(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> list[TileGroup]:
        """Group the tiles that the encoder sees in one pass: those of one size.

        A batch may hold tiles of several sizes, the small ones padded on the right and below to
        the large ones: a tile is as large as the longer side of what its mask shows. Each size is
        cropped and seen by itself, so that its numbers do not depend on its company.
        """
        if pixel_mask is None:
            return [TileGroup(torch.arange(len(pixel_values)), pixel_values, None)]
        number = torch.arange(1, max(pixel_mask.shape[1:]) + 1, device=pixel_mask.device)
        height, width = (
            (pixel_mask.any(axis) * number[: pixel_mask.shape[3 - axis]]).amax(1) for axis in (2, 1)
        )
        patch = _pair(config.patch_size)[0]
        sides = (torch.maximum(height, width).clamp(min=1) + patch - 1) // patch * patch
        groups = []
        for side in sides.unique().tolist():
            index = torch.where(sides == side)[0]
            mask = pixel_mask[index, :side, :side]
            if not self.takes_padding and not bool(mask.all()):
                raise ValueError(
                    f"the encoder {config.model_type} sees squares without padding: pixel_mask may "
                    "only mark a square from the upper left corner of each tile"
                )
            pixels = pixel_values[index, :, :side, :side]
            groups.append(TileGroup(index, pixels, mask if self.takes_padding else None))
        return groups

    def unread(self, config: PreTrainedConfig, feature_layer: int | None) -> tuple[str, ...]:
        """Modules of the encoder that the features of `feature_layer` do not depend on, where
        that is known.
        """
        return ()


class SquareImages(VisionInputs):
    """Encoders with `image_size` and `patch_size` that take the pixels as they are (SigLIP,
    CLIP, DINOv2, ...).
    """

    def grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        (height, width), (rows, columns) = self.image_size(config), _pair(config.patch_size)
        return height // rows, width // columns

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int]:
        return _pair(config.image_size)

    def inputs(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> dict[str, Tensor | bool]:
        if tuple(pixel_values.shape[2:]) != self.image_size(config):
            self.grid_at(config, pixel_values.shape[2])  # refuses what it cannot see
        return {"pixel_values": pixel_values}

    def grid_at(self, config: PreTrainedConfig, side: int) -> tuple[int, int]:
        grid = super().grid_at(config, side)
        if (side, side) != self.image_size(config):
            raise ValueError(
                f"the encoder {config.model_type} sees images of {self.image_size(config)[0]} "
                f"pixels alone, not of {side}: no interpolation of its positions is known here. "
                f"Encoders that see other resolutions: {', '.join(VISION_INPUTS)}"
            )
        return grid


class InterpolatedPositions(SquareImages):
    """Encoders that interpolate their position embeddings for images of another size.

    `switch`: the keyword of the forward that asks for it; None where it always happens.
    """

    def __init__(self, switch: str | None) -> None:
        self.switch = switch

    def grid_at(self, config: PreTrainedConfig, side: int) -> tuple[int, int]:
        return VisionInputs.grid_at(self, config, side)

    def inputs(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> dict[str, Tensor | bool]:
        inputs = super().inputs(config, pixel_values, pixel_mask)
        if self.switch is None or tuple(pixel_values.shape[2:]) == self.image_size(config):
            return inputs
        return inputs | {self.switch: True}


class FlattenedPatches(VisionInputs):
    """SigLIP2's NaFlex encoder takes flattened patches with their grid; square images fill its
    `num_patches`, smaller ones have fewer.
    """

    def grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        side = int(config.num_patches**0.5)
        return side, side

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int]:
        (rows, columns), (height, width) = self.grid(config), _pair(config.patch_size)
        return rows * height, columns * width

    def inputs(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> dict[str, Tensor | bool]:
        height, width = _pair(config.patch_size)
        patches = rearrange(pixel_values, "t c (y h) (x w) -> t (y x) (h w c)", h=height, w=width)
        tiles, number = patches.shape[:2]
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(
                tiles, number, dtype=torch.long, device=patches.device
            ),
            "spatial_shapes": torch.tensor(
                [(pixel_values.shape[2] // height, pixel_values.shape[3] // width)] * tiles,
                device=patches.device,
            ),
        }


class VariableResolution(SquareImages):
    """Aria's encoder (NaViT-like): tiles of any size up to `image_size`, padded on the right and
    below.
    """

    takes_padding = True

    def grid_at(self, config: PreTrainedConfig, side: int) -> tuple[int, int]:
        return VisionInputs.grid_at(self, config, side)

    def inputs(
        self,
        config: PreTrainedConfig,
        pixel_values: Float[Tensor, "t 3 h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None,
    ) -> dict[str, Tensor | bool]:
        if pixel_mask is None:
            return {"pixel_values": pixel_values}
        return {
            "pixel_values": pixel_values,
            "patch_attention_mask": patch_mask(config, pixel_mask),
        }

    def unread(self, config: PreTrainedConfig, feature_layer: int | None) -> tuple[str, ...]:
        if feature_layer is None:
            return ()
        # hidden state 0 is what goes into the first layer
        last = range(config.num_hidden_layers + 1)[feature_layer]
        return (
            "post_layernorm",
            *(f"encoder.layers.{n}" for n in range(last, config.num_hidden_layers)),
        )


def patch_mask(
    config: PreTrainedConfig, pixel_mask: Bool[Tensor, "t h w"]
) -> Bool[Tensor, "t rows columns"]:
    """Mark the patches that show at least one pixel of the image."""
    height, width = _pair(config.patch_size)
    return reduce(pixel_mask, "t (y h) (x w) -> t y x", "any", h=height, w=width)


DEFAULT_VISION_INPUTS: VisionInputs = SquareImages()
VISION_INPUTS: dict[str, VisionInputs] = {
    "siglip_vision_model": InterpolatedPositions("interpolate_pos_encoding"),
    "clip_vision_model": InterpolatedPositions("interpolate_pos_encoding"),
    "dinov2": InterpolatedPositions(None),
    "siglip2_vision_model": FlattenedPatches(),
    "idefics3_vision": VariableResolution(),
}
"""By `model_type`; encoders that are not listed take square images."""


def vision_inputs(config: PreTrainedConfig) -> VisionInputs:
    """The row of the table for an encoder's configuration."""
    return VISION_INPUTS.get(config.model_type, DEFAULT_VISION_INPUTS)


def vision_grid(config: PreTrainedConfig, side: int | None = None) -> tuple[int, int]:
    """(rows, columns) of patches of an image of the encoder's own size, or of `side` pixels."""
    encoder = vision_inputs(config)
    own_size = encoder.image_size(config)
    return encoder.grid(config) if side in (None, *own_size) else encoder.grid_at(config, side)


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
