"""The arithmetic of budgets: how many placeholders an image takes, before its pixels are seen.

in: budgets as a user gives them, images or their sizes, and what a call chooses for their tiles;
out: one budget and one number of placeholders per image, and the tiles themselves. `M3Processor`
inherits this, and the collator and the sweep ask it.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import BaseImageProcessor

from m3.nesting import (
    SCALE_OPTION,
    Budget,
    Grid,
    ImageReader,
    Tiles,
    get_nesting,
    make_tiling,
    read_budget,
    read_ladder,
    resolutions,
)
from m3.processing.aria_tiles import AriaTileProcessor, AriaTiles
from m3.processing.call_options import budget_settings, per_image
from m3.processing.images import MAX_PIXELS, ImageSource, image_size
from m3.processing.scale_policy import Rule, ScaleSetting, read_policy
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

BudgetSetting = int | str | Budget
ANY_SIZE = (1, 1)
"""(height, width) of an image that stands for all, where only the tokens of a tile matter."""
SEEN_WHOLE = Tiles()

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
    def trained_scales(self) -> list[int | str]:
        """The ladder as files write it, ascending: 36, or "36@48"."""
        return self.nesting["trained_scales"]

    @property
    def ladder(self) -> tuple[Budget, ...]:
        """The trained budgets, ascending."""
        return read_ladder(self.trained_scales)

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
        return EncoderTiles(self.image_processor, self.reader.tiling, self.grid)

    def train_at(self, ladder: Sequence[BudgetSetting]) -> None:
        """Take the budgets as those the weights are trained at; a `ValueError` as in `budget`."""
        budgets = sorted({self.budget(setting) for setting in ladder})
        self.nesting = self.nesting | {"trained_scales": [budget.setting for budget in budgets]}

    def check_budgets(self, budgets: Iterable[Budget]) -> None:
        """An unreachable budget is a `ValueError` with the choices."""
        for budget in budgets:
            options = TileOptions(resolution=budget.resolution)
            tiles = (
                self.tile_maker.outline(lambda: ANY_SIZE, options)
                if options.resolution
                else Tiles()
            )
            self.reader.shape(budget.tokens, tiles.tokens)

    def budget(self, setting: int | str | Budget) -> Budget:
        """The budget that a user's 36 or 36@48 means here: the largest resolution has no name.

        A `ValueError` where it cannot be read or reached.
        """
        budget = read_budget(setting)
        if budget.resolution == self.tile_maker.largest_resolution:
            budget = Budget(budget.tokens)
        self.check_budgets([budget])
        return budget

    def count_tokens(
        self,
        sizes: Sequence[tuple[int, int]],
        matryoshka_vis_token_scale: BudgetSetting | Sequence[BudgetSetting] | None = None,
        max_image_size: int | Sequence[int] | None = None,
        split_image: bool | Sequence[bool] | None = None,
    ) -> list[int]:
        """Placeholders that images of these (height, width) in pixels take, before any of them
        is loaded.
        """
        budgets = self.resolve_scales(matryoshka_vis_token_scale, len(sizes))
        images = self.outlines(sizes, budgets, max_image_size, split_image)
        return self.counts(self.fill_budgets(budgets, images), images)

    def outlines(
        self,
        sizes: Sequence[tuple[int, int]],
        budgets: Sequence[Budget | None] | None = None,
        max_image_size: int | Sequence[int] | None = None,
        split_image: bool | Sequence[bool] | None = None,
    ) -> list[Tiles]:
        """Tiles of images of these (height, width) in pixels; `budgets`: one per image, by default
        at the largest resolution.
        """
        resolutions = budget_resolutions(budgets or [None] * len(sizes))
        options = tile_options(resolutions, max_image_size, split_image)
        return [
            self.tile_maker.outline(lambda size=size: size, option)
            for size, option in zip(sizes, options, strict=True)
        ]

    def counts(self, budgets: Sequence[Budget], images: Sequence[Tiles]) -> list[int]:
        """Placeholders that each image takes, seen as its tiles and read at its budget.

        Unreachable tokens are a `ValueError` with the choices.
        """
        reader = self.reader
        return [
            reader.count(budget.tokens, tiles)
            for budget, tiles in zip(budgets, images, strict=True)
        ]

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
        return self.tile_maker.outline(lambda: image_size(image, max_pixels, fetch_urls), options)

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
        self, scales: BudgetSetting | Sequence[BudgetSetting] | None, num_images: int
    ) -> list[Budget | None]:
        """One budget per image from what a user passed: one, or one per image; None of None, which
        `fill_budgets` fills once the tiles are known.

        Raises:
            ValueError: a setting that cannot be read or reached, or another number of them.
        """
        if scales is None:
            default = resolutions(self.ladder)[-1]
            highest = [budget for budget in self.ladder if budget.resolution == default]
            return [None if default is None else highest[-1]] * num_images
        settings = per_image(SCALE_OPTION, budget_settings(SCALE_OPTION, scales), num_images)
        budgets = [self.budget(setting) for setting in settings]
        for budget in set(budgets) - set(self.ladder):
            _warn_untrained(budget, self.ladder)
        return [*budgets]

    def fill_budgets(
        self, budgets: Sequence[Budget | None], images: Sequence[Tiles]
    ) -> list[Budget]:
        """The budgets with the largest trained one that the tiles of its image reach for None."""
        return [
            self.largest_trained(tiles) if budget is None else budget
            for budget, tiles in zip(budgets, images, strict=True)
        ]

    def policy_budgets(
        self, setting: ScaleSetting | None, sizes: Sequence[tuple[int, int] | None]
    ) -> list[Budget | None]:
        """One budget per image of a visual (a still, or the frames of a video) by the user's
        setting; None as in `resolve_scales`.

        `sizes`: (height, width) in pixels of each image; None where it is not known.

        Raises:
            ValueError: a setting that cannot be read or followed (m3/processing/scale_policy.py).
        """
        policy = None if setting is None else read_policy(setting)
        if isinstance(policy, Rule) and None not in sizes:
            return [policy.choose(size, self.ladder) for size in sizes if size is not None]
        budgets = None if policy is None else policy.budgets(len(sizes))
        return self.resolve_scales(budgets, len(sizes))

    def largest_trained(self, tiles: Tiles = SEEN_WHOLE) -> Budget:
        """The trained budget of most tokens at the resolution of the tiles, among those that they
        reach.
        """
        reachable = (
            self.reachable_scales
            if tiles.tokens is None
            else self.reader.nesting.reachable(tiles.tokens)
        )
        alike = [budget for budget in self.ladder if budget.resolution == tiles.resolution]
        fitting = [budget for budget in alike or self.ladder if budget.tokens in reachable]
        return Budget((fitting or self.ladder[:1])[-1].tokens, tiles.resolution)


def budget_resolutions(budgets: Sequence[Budget | None]) -> list[int | None]:
    """Resolution of each budget; None of the largest, and of no budget."""
    return [None if budget is None else budget.resolution for budget in budgets]


@functools.cache
def _warn_untrained(budget: Budget, trained: tuple[Budget, ...]) -> None:
    """Once per budget and process."""
    logger.warning(
        "scale %s can be reached but was not trained (trained: %s); answers may be worse than at "
        "the trained scales",
        budget,
        ", ".join(map(str, trained)),
    )
