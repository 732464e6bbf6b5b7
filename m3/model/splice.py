"""Splicing: each placeholder span of the text becomes the tokens of one image at one scale.

in:  `inputs_embeds [b, l, d]`, `input_ids [b, l]` with `count` placeholders per span, `features [t,
     n, d]` of all tiles (seen once), the images' `Tiles`, and the `Span`s in reading order;
out: `inputs_embeds [b, l, d]` with every placeholder replaced.

Spans need no separator between them, so their lengths come from the spans' counts alone; what the
text holds is checked against them, in all, per row and for text inside a span, and a difference is
an error with both counts.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m3.model.image_inputs import Span
from m3.nesting import Budget, ImageReader, Tiles
from m3.nesting.image_reader import Reduce


def splice(
    inputs_embeds: Float[Tensor, "b l d"],
    input_ids: Int[Tensor, "b l"],
    features: Float[Tensor, "t n d"],
    images: Sequence[Tiles],
    spans: Sequence[Span],
    image_token_id: int,
    reader: ImageReader,
    newline: Float[Tensor, " d"] | None,
    reduce: Reduce,
) -> Float[Tensor, "b l d"]:
    """Replaces the embeddings of all placeholders; gradients flow into `features` and `newline`.

    Raises:
        ValueError: placeholders that do not match the spans.
    """
    rows, columns = torch.where(input_ids == image_token_id)
    _check(rows, columns, spans)
    # (image, scale): read once, shown in all its spans
    sequences: dict[tuple[int, int], Tensor] = {}
    for scale in sorted({span.scale for span in spans}):
        shown = sorted({span.image for span in spans if span.scale == scale})
        read = reader.read_images(
            _tiles(features, images, shown), scale, [images[i] for i in shown], newline, reduce
        )
        sequences |= {(image, scale): tokens for image, tokens in zip(shown, read, strict=True)}
    if not spans:
        return inputs_embeds
    values = torch.cat([sequences[span.image, span.scale] for span in spans])
    return inputs_embeds.index_put((rows, columns), values.to(inputs_embeds.dtype))


def _tiles(
    features: Float[Tensor, "t n d"], images: Sequence[Tiles], shown: Sequence[int]
) -> Float[Tensor, "_ n d"]:
    """The tiles of the images `shown`; all of them without a copy."""
    if len(shown) == len(images):
        return features
    ends = list(accumulate(tiles.number for tiles in images))
    index = [
        tile for image in shown for tile in range(ends[image] - images[image].number, ends[image])
    ]
    return features[torch.tensor(index, device=features.device)]


def _check(rows: Int[Tensor, " p"], columns: Int[Tensor, " p"], spans: Sequence[Span]) -> None:
    """Check that every span finds its placeholders (`rows`, `columns`: where each stands) in one
    row, side by side.
    """
    ends = list(accumulate(span.count for span in spans))
    expected = ends[-1] if ends else 0
    if len(rows) != expected:
        scales, counts = [span.scale for span in spans], [span.count for span in spans]
        raise ValueError(
            f"the text has {len(rows)} image placeholders, but image_scales {scales} ask for "
            f"{expected}: {counts} per "
            "span. Expand each image to exactly its tokens (M3Processor does)"
        )
    at, place = rows.tolist(), columns.tolist()
    for number, (span, end) in enumerate(zip(spans, ends, strict=True)):
        if span.count and at[end - span.count] != at[end - 1]:
            raise ValueError(
                f"image span {number} of scale {span.scale} would run over the end of row "
                f"{at[end - span.count]}: it "
                f"has {span.count} tokens, and fewer placeholders"
            )
        if span.count and place[end - 1] - place[end - span.count] != span.count - 1:
            raise ValueError(
                f"image span {number} of scale {span.scale} has {span.count} tokens, but its "
                "placeholders in row "
                f"{at[end - 1]} have text between them: image_scales must stand in the order of "
                "the images in the text"
            )


def token_budgets(
    input_ids: Int[Tensor, "b l"],
    spans: Sequence[Span],
    budgets: Sequence[Budget],
    image_token_id: int,
    position_ids: Int[Tensor, "b l"] | None,
) -> Int[Tensor, "b l"]:
    """The place in `budgets` of the budget that each token reads: that of the last image before it
    in its own sequence, -1 where there is none.
    """
    is_image = input_ids == image_token_id
    at_images = torch.full_like(input_ids, -1)
    places = [budgets.index(span.budget) for span in spans]
    counts = [span.count for span in spans]
    at_images[is_image] = input_ids.new_tensor(places).repeat_interleave(
        input_ids.new_tensor(counts)
    )
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    last_image = torch.where(is_image, index, -1).cummax(1).values
    if position_ids is None:
        starts = torch.zeros_like(index)
    else:  # packed sequences restart their positions
        is_start = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
        starts = torch.where(is_start, index, 0).cummax(1).values
    return torch.where(last_image >= starts, at_images.gather(1, last_image.clamp(min=0)), -1)
