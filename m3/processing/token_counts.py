"""The arithmetic of scales: how many placeholders an image takes at a scale, before its pixels are
seen.

in: scales as a user gives them, images or their sizes, and what a call chooses for their tiles;
out: one scale and one number of placeholders per image, and the tiles themselves. `M3Processor`
inherits this, and the collator and the sweep ask it.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from transformers import BaseImageProcessor

from m3.nesting import SCALE_OPTION, Grid, ImageReader, Tiles, get_nesting, make_tiling
from m3.processing.aria_tiles import AriaTileProcessor, AriaTiles
from m3.processing.call_options import per_image, whole_numbers
from m3.processing.images import MAX_PIXELS, ImageSource, image_size
from m3.processing.scale_policy import ScaleSetting, read_policy
from m3.processing.tiles import (
    AS_CONFIGURED,
    EncoderTiles,
    TiledImages,
    TileMaker,
    TileOptions,
    prepare_images,
    tile_options,
)

logger = logging.getLogger(__name__)


TILE_MAKERS: dict[type[BaseImageProcessor], Callable[[Any], TileMaker]] = {
    AriaTileProcessor: AriaTiles
}
"""Image processors that make their tiles themselves; of all others the model's tiling is drawn."""


class ScaleArithmetic:
    """The processor's arithmetic of scales and tiles."""

    grid: Grid
    nesting: dict[str, Any]
    tiling: dict[str, Any]
    image_processor: BaseImageProcessor

    @property
    def trained_scales(self) -> list[int]:
        """Ascending."""
        return self.nesting["trained_scales"]

    @property
    def reachable_scales(self) -> tuple[int, ...]:
        """Every scale this grid and nesting give, trained or not."""
        return get_nesting(self.nesting["kind"]).reachable(self.grid)

    @property
    def reader(self) -> ImageReader:
        """The arithmetic of scales and tiles, the same as the model's."""
        return ImageReader(get_nesting(self.nesting["kind"]), make_tiling(self.tiling), self.grid)

    @property
    def tile_maker(self) -> TileMaker:
        """Maker of the tiles of an image."""
        own_maker = TILE_MAKERS.get(type(self.image_processor))
        if own_maker is not None:
            return own_maker(self.image_processor)
        return EncoderTiles(self.image_processor, self.reader.tiling)

    def check_scales(self, scales: Sequence[int]) -> None:
        """An unreachable scale is a `ValueError` with the choices."""
        for scale in scales:
            self.reader.nesting.count(self.grid, scale)

    def count_tokens(
        self,
        sizes: Sequence[tuple[int, int]],
        matryoshka_vis_token_scale: int | Sequence[int] | None = None,
        max_image_size: int | Sequence[int] | None = None,
        split_image: bool | Sequence[bool] | None = None,
    ) -> list[int]:
        """Placeholders that images of these (height, width) in pixels take, before any of them
        is loaded.
        """
        images = self.outlines(sizes, max_image_size, split_image)
        return self.counts(
            self.resolve_scales(matryoshka_vis_token_scale, len(sizes), images), images
        )

    def outlines(
        self,
        sizes: Sequence[tuple[int, int]],
        max_image_size: int | Sequence[int] | None = None,
        split_image: bool | Sequence[bool] | None = None,
    ) -> list[Tiles]:
        """Tiles of images of these (height, width) in pixels."""
        options = tile_options(max_image_size, split_image, len(sizes))
        return [
            self._outline(lambda size=size: size, option)
            for size, option in zip(sizes, options, strict=True)
        ]

    def counts(self, scales: Sequence[int], images: Sequence[Tiles]) -> list[int]:
        """Placeholders that each image takes at its scale.

        An unreachable scale is a `ValueError` with the choices.
        """
        reader = self.reader
        return [reader.count(scale, tiles) for scale, tiles in zip(scales, images, strict=True)]

    def outline(
        self,
        image: ImageSource,
        max_pixels: int = MAX_PIXELS,
        fetch_urls: bool = False,
        options: TileOptions = AS_CONFIGURED,
    ) -> Tiles:
        """Tiles of an image, without decoding it; it is not even opened where its size does not
        matter.
        """
        return self._outline(lambda: image_size(image, max_pixels, fetch_urls), options)

    def _outline(self, size: Callable[[], tuple[int, int]], options: TileOptions) -> Tiles:
        return self.tile_maker.outline(size, options)

    def prepare_images(
        self,
        images: Sequence[ImageSource],
        max_pixels: int = MAX_PIXELS,
        fetch_urls: bool = False,
        options: Sequence[TileOptions] | None = None,
    ) -> TiledImages:
        """The tiles of all images, as the encoder takes them, and what is known of each image."""
        return prepare_images(images, self.tile_maker, max_pixels, fetch_urls, options)

    def resolve_scales(
        self,
        scales: int | Sequence[int] | None,
        num_images: int,
        images: Sequence[Tiles] | None = None,
    ) -> list[int]:
        """One scale per image from what a user passed: None, one number, or one per image.

        `images`, where their tiles have different numbers of tokens: None is then the largest
        trained scale that each reaches.
        """
        if scales is None:
            return [
                self._largest_trained(tiles.tokens) for tiles in images or [Tiles()] * num_images
            ]
        resolved = per_image(SCALE_OPTION, whole_numbers(SCALE_OPTION, scales), num_images)
        for scale in resolved:
            if scale not in self.trained_scales and scale in self.reachable_scales:
                _warn_untrained(scale, tuple(self.trained_scales))
        return resolved

    def policy_scales(self, setting: ScaleSetting | None, images: Sequence[Tiles]) -> list[int]:
        """One scale per image of a visual (a still, or the frames of a video) by the user's
        setting; None: the largest trained.

        Raises:
            ValueError: a setting that cannot be read or followed (m3/processing/scale_policy.py).
        """
        scales = None if setting is None else read_policy(setting).scales(len(images))
        return self.resolve_scales(scales, len(images), images)

    def _largest_trained(self, tokens: int | None) -> int:
        reachable = (
            self.reachable_scales if tokens is None else self.reader.nesting.reachable(tokens)
        )
        return next(
            (scale for scale in reversed(self.trained_scales) if scale in reachable),
            self.trained_scales[0],
        )


@functools.cache
def _warn_untrained(scale: int, trained: tuple[int, ...]) -> None:
    """Once per scale and process."""
    logger.warning(
        "scale %d can be reached but was not trained (trained: %s); answers may be worse than at "
        "the trained scales",
        scale,
        ", ".join(map(str, trained)),
    )
