"""Splicing: each placeholder span of the text becomes the nested tokens of one image at one scale.

in:  `inputs_embeds [b, l, d]`, `input_ids [b, l]` with `scale` placeholders per span, `features [i, n, d]` of each image
     (seen once), `image_scales [s]` and `image_index [s]`: the scale of each span and the image it shows, in reading order;
out: `inputs_embeds [b, l, d]` with every placeholder replaced.

Spans need no separator between them, so their lengths come from `image_scales` alone; what the text holds is checked
against them, in all and per row, and a difference is an error with both counts.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m3.nesting import Grid, Nesting


def splice(
    inputs_embeds: Float[Tensor, "b l d"],
    input_ids: Int[Tensor, "b l"],
    features: Float[Tensor, "i n d"],
    image_scales: Int[Tensor, " s"],
    image_index: Int[Tensor, " s"],
    image_token_id: int,
    nesting: Nesting,
    grid: Grid,
) -> Float[Tensor, "b l d"]:
    """Replaces the embeddings of all placeholders; gradients flow into `features`.

    Raises:
        ValueError: a scale that `grid` cannot reach, an image index out of range, or placeholders that do not match.
    """
    rows, columns = torch.where(input_ids == image_token_id)
    starts = _span_starts(rows, image_scales, image_index, features.shape[0])
    targets, values = [], []
    for scale in image_scales.unique().tolist():
        spans = torch.where(image_scales == scale)[0]
        nested = nesting.nest(
            features, nesting.count(grid, scale), grid
        )  # once per image and scale, read by all its spans
        values.append(nested[image_index[spans]].flatten(0, 1))
        targets.append((starts[spans, None] + torch.arange(scale, device=starts.device)).flatten())
    target = torch.cat(targets)
    return inputs_embeds.index_put((rows[target], columns[target]), torch.cat(values).to(inputs_embeds.dtype))


def _span_starts(
    rows: Int[Tensor, " p"], image_scales: Int[Tensor, " s"], image_index: Int[Tensor, " s"], images: int
) -> Int[Tensor, " s"]:
    """Where each span starts among all placeholders (`rows`: the row of each)."""
    if image_scales.shape != image_index.shape:
        raise ValueError(f"{len(image_scales)} image_scales but {len(image_index)} image_index: one of each per span")
    if len(image_index) and not 0 <= int(image_index.min()) <= int(image_index.max()) < images:
        raise ValueError(f"image_index spans {image_index.tolist()}, but there are {images} images")
    ends = image_scales.cumsum(0)
    features = int(ends[-1]) if len(ends) else 0
    if len(rows) != features:
        raise ValueError(
            f"the text has {len(rows)} image placeholders, but image_scales {image_scales.tolist()} ask for {features}: "
            "expand each image to exactly its scale (M3Processor does)"
        )
    starts = ends - image_scales
    broken = torch.where(rows[starts] != rows[ends - 1])[0]
    if len(broken):
        raise ValueError(
            f"image span {int(broken[0])} of scale {int(image_scales[broken[0]])} would run over the end of row "
            f"{int(rows[starts[broken[0]]])}: its placeholders are fewer than its scale"
        )
    return starts


def token_scales(
    input_ids: Int[Tensor, "b l"],
    image_scales: Int[Tensor, " s"],
    image_token_id: int,
    position_ids: Int[Tensor, "b l"] | None,
) -> Int[Tensor, "b l"]:
    """The scale that each token reads: that of the last image before it in its own sequence, 0 where there is none."""
    is_image = input_ids == image_token_id
    at_images = torch.zeros_like(input_ids)
    at_images[is_image] = image_scales.repeat_interleave(image_scales)
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    last_image = torch.where(is_image, index, -1).cummax(1).values
    if position_ids is None:
        starts = torch.zeros_like(index)
    else:  # packed sequences restart their positions
        is_start = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
        starts = torch.where(is_start, index, 0).cummax(1).values
    return torch.where(last_image >= starts, at_images.gather(1, last_image.clamp(min=0)), 0)
