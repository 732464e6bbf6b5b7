"""Image features: each picture is seen once at a resolution, and read by prompts at any scale of it.

In: the model, the processor, pictures (stills, or the frames of a video), the resolutions that the
budgets of a question ask for. Out: `PictureFeatures`, and the model's inputs made of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from m3.model import M3Config, M3ForConditionalGeneration
from m3.nesting import Budget, Tiles, resolutions
from m3.processing import ImageSource, M3Processor, TiledImages
from m3.processing.images import MAX_PIXELS
from m3.processing.scale_policy import ScaleSetting
from m3.processing.tiles import TileOptions, tile_entries

TOWER_BATCH = 16
"""Pictures per pass of the vision tower."""

View = tuple[int, int | None]
"""A picture of a visual, counted from 0, and the resolution in pixels that it is seen at (None: the
largest).
"""


@dataclass(frozen=True)
class PictureFeatures:
    """A picture seen at one resolution: its tiles, and the connector's tokens of them, not
    reduced.
    """

    tiles: Tiles
    tokens: Float[Tensor, "_ _ d"]


@dataclass(frozen=True)
class TowerBatch:
    """Views of one resolution that pass the tower together, ready for it."""

    views: tuple[View, ...]
    tiled_images: TiledImages


@dataclass(frozen=True)
class VisualFeatures:
    """A still image or the frames of a video, and what was seen of them so far.

    `name` and `description` are for users; `views` grows as resolutions are asked for.
    """

    name: str
    description: str
    pictures: tuple[Image.Image, ...]
    views: dict[View, PictureFeatures] = field(default_factory=dict)

    def outline(
        self, processor: M3Processor, scale: ScaleSetting | None
    ) -> tuple[list[Budget], list[Tiles]]:
        """Budget and tiles of each picture at a setting, before any of them is seen.

        Raises:
            ValueError: a setting that cannot be read, followed or reached.
        """
        sizes = [(picture.height, picture.width) for picture in self.pictures]
        asked_budgets = processor.policy_budgets(scale, sizes)
        tiles = processor.outlines(sizes, asked_budgets)
        return processor.fill_budgets(asked_budgets, tiles), tiles

    def see(
        self, model: M3ForConditionalGeneration, processor: M3Processor, sides: Sequence[int | None]
    ) -> list[PictureFeatures]:
        """Features of each picture at its resolution; the tower runs where they are new."""
        asked_views = list(enumerate(sides))
        new_views = [view for view in asked_views if view not in self.views]
        for batch in tower_batches(processor, self.pictures, new_views):
            self.views.update(see_batch(model, batch))
        return [self.views[view] for view in asked_views]


def check_resolutions(config: M3Config, budgets: Iterable[Budget | None]) -> None:
    """A `ValueError` where encoder or connector cannot see a picture at a budget's resolution."""
    for side in resolutions(budget for budget in budgets if budget is not None):
        config.grid_at(side)


def tower_batches(
    processor: M3Processor,
    pictures: Sequence[ImageSource],
    views: Sequence[View],
    max_pixels: int = MAX_PIXELS,
) -> Iterator[TowerBatch]:
    """The views, resolution by resolution, `TOWER_BATCH` at a time.

    A pass holds one resolution, so a picture's numbers do not depend on what else is asked for.
    """
    for side in dict.fromkeys(side for _, side in views):
        at_side = [view for view in views if view[1] == side]
        for start in range(0, len(at_side), TOWER_BATCH):
            batch_views = tuple(at_side[start : start + TOWER_BATCH])
            batch_pictures = [pictures[number] for number, _ in batch_views]
            options = [TileOptions(resolution=side)] * len(batch_views)
            yield TowerBatch(
                batch_views, processor.prepare_images(batch_pictures, max_pixels, options=options)
            )


def see_batch(
    model: M3ForConditionalGeneration, batch: TowerBatch
) -> Mapping[View, PictureFeatures]:
    """Run tower and connector on a batch."""
    batch_tokens = encode_tiles(model, batch.tiled_images)
    return {
        # a part alone, as a slice would keep its whole batch in memory
        view: PictureFeatures(tiles, tokens.clone())
        for view, tiles, tokens in zip(
            batch.views, batch.tiled_images.images, batch_tokens, strict=True
        )
    }


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


def pad_features(pictures: Sequence[Float[Tensor, "_ _ d"]]) -> Float[Tensor, "t m d"]:
    """Concatenate the tiles of several pictures, padded at the end to equal token counts."""
    most_tokens = max(features.shape[1] for features in pictures)
    return torch.cat(
        [pad(features, (0, 0, 0, most_tokens - features.shape[1])) for features in pictures]
    )


def image_inputs(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    pictures: Sequence[PictureFeatures],
    budgets: Sequence[Budget],
) -> dict[str, Tensor]:
    """Inputs of `forward` and `generate` in place of pixels; `budgets` has one per picture."""
    if not pictures:
        return {}
    known_entries = tile_entries([picture.tiles for picture in pictures], processor.reader.tiling)
    scales = torch.tensor([budget.tokens for budget in budgets], dtype=torch.int64)
    inputs = known_entries | {"image_scales": scales}
    return {name: values.to(model.device) for name, values in inputs.items()} | {
        "image_features": pad_features([picture.tokens for picture in pictures])
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
