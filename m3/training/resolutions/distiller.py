"""Resolution distillation: what the tower and the connector make of an image at a low resolution
comes near what they made of it at the largest, before training.

in:  the tiles of each image at every resolution of the ladder, one tile each;
way: tokens of the model at each resolution, against the tokens of a frozen copy at the largest, which
     are averaged down to the grid of the low resolution;
out: the squared error of each resolution, divided by the variance of what it is to reach (1: as bad
     as knowing the mean alone), and their weighted mean, the loss.

The answer's loss alone is too thin a signal to learn small letters anew. Here each token of each
picture says what it should have been, and no decoder runs. Relatives: MDistill of resolutions
(https://arxiv.org/abs/2105.11437) and feature distillation of FitNets
(https://arxiv.org/abs/1412.6550).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers.utils.generic import ModelOutput

from m3.data.mixture import Broken, Positioned
from m3.model.backbone import M3Model
from m3.nesting import Grid
from m3.processing import M3Processor
from m3.processing.tiles import tile_options


@dataclass
class DistillerOutput(ModelOutput):
    """loss: scalar. errors `[k]`: of each resolution, in their order."""

    loss: Tensor | None = None
    errors: Tensor | None = None


class ResolutionDistiller(nn.Module):
    """Tower and connector of a model, and a frozen copy of them.

    `weights`: of each resolution's error in the loss, ascending, the largest (None) last. The decoder
    is no part of this module: nothing of it is trained, saved or moved.
    """

    def __init__(self, model: M3Model, weights: Mapping[int | None, float]) -> None:
        super().__init__()
        self.grids = check_resolutions(model, list(weights))
        # the copy shares the decoder, which neither of the two runs
        teacher = deepcopy(model, {id(model.language_model): model.language_model})
        self.tower, self.connector = model.vision_tower, model.connector
        self.teacher_tower, self.teacher_connector = teacher.vision_tower, teacher.connector
        for module in (self.teacher_tower, self.teacher_connector):
            module.requires_grad_(False)
        # held in a tuple, which hides their other modules
        self._seeing = (model, teacher.eval())
        self._weights = torch.tensor(list(weights.values()))

    def train(self, mode: bool = True) -> "ResolutionDistiller":
        """The frozen copy stays as it is used, without dropout."""
        super().train(mode)
        self.teacher_tower.eval()
        self.teacher_connector.eval()
        return self

    def forward(
        self, pixel_values: Float[Tensor, "t 3 h w"], pixel_mask: Bool[Tensor, "t h w"]
    ) -> DistillerOutput:
        """Tiles of one image after the other, of each at all resolutions, ascending."""
        model, teacher = self._seeing
        tokens = model.get_image_features(pixel_values, pixel_mask).pooler_output
        resolutions = len(self.grids)
        with torch.no_grad():
            full = teacher.get_image_features(pixel_values[resolutions - 1 :: resolutions])
        assert tokens is not None and full.pooler_output is not None  # always given
        errors = torch.stack(
            [
                _relative_error(
                    tokens[place::resolutions], full.pooler_output, grid, self.grids[-1]
                )
                for place, grid in enumerate(self.grids)
            ]
        )
        weights = self._weights.to(errors.device)
        return DistillerOutput((errors * weights).sum() / weights.sum(), errors.detach())


def check_resolutions(model: M3Model, resolutions: Sequence[int | None]) -> list[tuple[int, int]]:
    """Grids of the tokens at each resolution.

    Raises:
        ValueError: a model whose tokens are no grid, or whose tower sees one size alone.
    """
    config = model.config
    grids: list[Grid] = [config.grid_at(side) for side in resolutions]
    squares = [grid for grid in grids if not isinstance(grid, int)]
    if len(squares) < len(grids):
        raise ValueError(
            f"the connector {config.connector.kind} gives learned queries, not a grid of tokens, so "
            "those of two resolutions cannot be compared: train this model over its ladder directly"
        )
    if config.tiling.is_cut:
        raise ValueError(
            f"the tiling {config.tiling.kind} cuts images into tiles of one size, which the tower "
            "sees alike at every resolution: there is nothing to distil; train this model over its "
            "ladder directly"
        )
    return squares


def _relative_error(
    tokens: Float[Tensor, "i n d"],
    full: Float[Tensor, "i m d"],
    grid: tuple[int, int],
    full_grid: tuple[int, int],
) -> Float[Tensor, ""]:
    """Squared error of the tokens that are none of the padding, over the variance of the pooled."""
    rows, columns = full_grid
    square = rearrange(full.float(), "i (y x) d -> i d y x", y=rows, x=columns)
    target = rearrange(adaptive_avg_pool2d(square, grid), "i d y x -> i (y x) d")
    own = tokens[:, : target.shape[1]].float()
    return (own - target).square().mean() / target.var()


class PictureCollator:
    """A `collate_fn`: the pictures of a batch of samples, each at every resolution."""

    def __init__(self, processor: M3Processor, resolutions: Sequence[int | None]) -> None:
        self.processor = processor
        self.resolutions = list(resolutions)

    def __call__(self, positioned: Sequence[Positioned]) -> dict[str, Tensor]:
        """A batch for `ResolutionDistiller`; a `ValueError` where no sample shows a picture."""
        pictures = [
            picture
            for place in positioned
            if not isinstance(place.sample, Broken)
            for picture in place.sample.images
        ]
        if not pictures:
            raise ValueError(
                f"none of {len(positioned)} samples shows a picture, and resolution distillation "
                "learns from pictures alone: leave out sources of text, or raise schedule.batch_size"
            )
        repeated = [picture for picture in pictures for _ in self.resolutions]
        options = tile_options(self.resolutions * len(pictures))
        tiles = self.processor.prepare_images(repeated, options=options)
        assert tiles.pixel_mask is not None  # there are several sizes
        return {"pixel_values": tiles.pixel_values, "pixel_mask": tiles.pixel_mask}
