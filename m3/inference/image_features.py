"""Image features, encoded once and read by prompts at any scale.

In: the model, the processor, pictures (stills, or the frames of a video). Out: `VisualFeatures`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from m3.model import M3ForConditionalGeneration
from m3.nesting import Tiles
from m3.processing import ImageSource, M3Processor, TiledImages
from m3.processing.images import MAX_PIXELS
from m3.processing.tiles import tile_entries

TOWER_BATCH = 16
"""Pictures per pass of the vision tower."""


@dataclass(frozen=True)
class VisualFeatures:
    """Features of a still image or of a video's frames; `name` and `description` are for users."""

    name: str
    description: str
    tiles: tuple[Tiles, ...]  # of each picture
    features: tuple[Float[Tensor, "_ _ d"], ...]  # of each picture: connector's tokens, not reduced

    @property
    def number_of_tiles(self) -> int:
        return sum(tiles.number for tiles in self.tiles)


def tile_batches(
    processor: M3Processor, pictures: Sequence[ImageSource], max_pixels: int = MAX_PIXELS
) -> Iterator[TiledImages]:
    """Inputs of the vision tower, `TOWER_BATCH` pictures at a time."""
    for start in range(0, len(pictures), TOWER_BATCH):
        yield processor.prepare_images(pictures[start : start + TOWER_BATCH], max_pixels)


@torch.no_grad()
def encode_tiles(
    model: M3ForConditionalGeneration, tiled_images: TiledImages
) -> list[Float[Tensor, "_ _ d"]]:
    """Tokens of each picture after tower and connector, before token reduction."""
    mask = None if tiled_images.pixel_mask is None else tiled_images.pixel_mask.to(model.device)
    image_tokens = model.get_image_features(
        tiled_images.pixel_values.to(model.device), mask
    ).pooler_output
    assert image_tokens is not None  # get_image_features always gives it
    picture_tokens = image_tokens.split([tiles.number for tiles in tiled_images.images])
    return [
        padded_tokens[:, : tiles.tokens]
        for padded_tokens, tiles in zip(picture_tokens, tiled_images.images, strict=True)
    ]


def encode_visual(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    name: str,
    description: str,
    pictures: Sequence[Image.Image],
) -> VisualFeatures:
    """Encode the pictures of a still image or a video, `TOWER_BATCH` at a time."""
    tiles: list[Tiles] = []
    features: list[Tensor] = []
    for tiled_images in tile_batches(processor, pictures):
        tiles += tiled_images.images
        features += encode_tiles(model, tiled_images)
    return VisualFeatures(name, description, tuple(tiles), tuple(features))


def pad_features(pictures: Sequence[Float[Tensor, "_ _ d"]]) -> Float[Tensor, "t m d"]:
    """Concatenate the tiles of several pictures, padded at the end to equal token counts."""
    most_tokens = max(features.shape[1] for features in pictures)
    return torch.cat(
        [pad(features, (0, 0, 0, most_tokens - features.shape[1])) for features in pictures]
    )


def image_inputs(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    visuals: Sequence[VisualFeatures],
    scales: Sequence[int],
) -> dict[str, Tensor]:
    """Inputs of `forward` and `generate` in place of pixels; `scales` has one per picture."""
    if not visuals:
        return {}
    picture_features = [tile_features for visual in visuals for tile_features in visual.features]
    known_entries = tile_entries(
        [image_tiles for visual in visuals for image_tiles in visual.tiles], processor.reader.tiling
    )
    inputs = known_entries | {"image_scales": torch.tensor(list(scales), dtype=torch.int64)}
    return {name: values.to(model.device) for name, values in inputs.items()} | {
        "image_features": pad_features(picture_features)
    }


def split_at_marks(text: str, marks: Sequence[str]) -> Iterator[str]:
    """Split `text` at the marks and include them: text, mark, text, mark, text."""
    start = 0
    while start <= len(text):
        mark_positions = [
            (mark_start, mark) for mark in marks if (mark_start := text.find(mark, start)) >= 0
        ]
        if not mark_positions:
            yield text[start:]
            return
        mark_start, mark = min(mark_positions)
        yield text[start:mark_start]
        yield mark
        start = mark_start + len(mark)
