"""Image features of a sweep, kept as long as there is room: each picture is encoded once at each
resolution, for all budgets at it.

In: `Picture`s and `View`s (questions.py). Out: `image_features` and what else the model takes in
    the place of pixels.
"""

from collections.abc import Iterator, Sequence
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from m3.evaluation.answering.questions import View
from m3.evaluation.token_reduction.low_resolution import low_resolution_tokens
from m3.evaluation.token_reduction.methods import RESOLUTION
from m3.evaluation.token_reduction.table import chosen_tokens
from m3.inference.feature_cache import FeatureStore
from m3.inference.image_features import PictureFeatures, encode_tiles, pad_features
from m3.model import M3ForConditionalGeneration
from m3.nesting import Tiles
from m3.processing.processor import M3Processor
from m3.processing.tiles import TileOptions, tile_entries


class PictureCache:
    """Tokens of pictures before nesting, by content and resolution."""

    def __init__(
        self, model: M3ForConditionalGeneration, processor: M3Processor, limit: int
    ) -> None:
        """`limit`: bytes. What one batch needs is kept even beyond it."""
        self.model = model
        self.processor = processor
        self.images_seen = 0
        self.store = FeatureStore[Tensor](limit, lambda features: features.nbytes)

    @torch.no_grad()
    def see(self, views: Sequence[View], batch_size: int) -> None:
        """Runs tower and connector on what the cache has not of the views' pictures, about
        `batch_size` tiles of one resolution at a time.
        """
        whole_views = {view.whole.key: view.whole for view in views}
        unseen = [view for key, view in whole_views.items() if key not in self.store]
        for side in sorted({view.resolution for view in unseen}, key=lambda side: side or inf):
            at_side = [view for view in unseen if view.resolution == side]
            tile_counts = [self.tiles(view).number for view in at_side]
            for batch in batches_of_tiles(at_side, tile_counts, batch_size):
                tiled_images = self.processor.prepare_images(
                    [view.picture.image for view in batch],
                    options=[TileOptions(resolution=side)] * len(batch),
                )
                new_features = encode_tiles(self.model, tiled_images)
                for view, picture_features in zip(batch, new_features, strict=True):
                    # a part alone, so that it can go alone
                    self.store.add(view.key, picture_features.clone())
                self.images_seen += len(batch)

    def tiles(self, view: View) -> Tiles:
        """Tiles of the view's picture at its resolution."""
        return self.processor.outline(
            view.picture.image, options=TileOptions(resolution=view.resolution)
        )

    def features(self, views: Sequence[View]) -> list[PictureFeatures]:
        """All tokens of the views' pictures, which `see` was asked for just before."""
        pictures = []
        for view in views:
            tokens = self.store.find(view.whole.key)
            assert tokens is not None  # nothing is dropped in between
            pictures.append(PictureFeatures(self.tiles(view), tokens))
        return pictures

    def inputs(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Features of distinct views and their tiles; those that the cache has dropped are made
        again.
        """
        self.see([view for view in views if view.method != RESOLUTION], len(views))
        features = pad_features([self._shown(view) for view in views])
        self.store.trim(least_entries=len(views))
        known_entries = tile_entries(
            [self.tiles(view) for view in views], self.processor.reader.tiling
        )
        return {"image_features": features} | {
            entry_name: entry_value.to(self.model.device)
            for entry_name, entry_value in known_entries.items()
        }

    def _shown(self, view: View) -> Float[Tensor, "t n d"]:
        """The tokens of a view, from the cache or made from the picture's."""
        made_tokens = self.store.find(view.key)
        if made_tokens is None:
            config, picture = self.model.config, view.picture
            if view.method == RESOLUTION:
                pixels = self.processor.prepare_images([picture.image]).pixel_values.to(
                    self.model.device
                )
                made_tokens = low_resolution_tokens(self.model, pixels, view.scale)
            else:
                tiles = self.store.find(view.whole.key)
                assert tiles is not None  # `inputs` has it seen
                made_tokens = chosen_tokens(
                    tiles, view.method, view.scale, config.grid, picture.digest
                )
            self.store.add(view.key, made_tokens)
        return made_tokens


def batches_of_tiles(
    views: Sequence[View], tiles: Sequence[int], most_tiles: int
) -> Iterator[list[View]]:
    """Views in order, in groups of at most `most_tiles` tiles (or of one picture)."""
    batch: list[View] = []
    filled_tiles = 0
    for view, tile_count in zip(views, tiles, strict=True):
        if batch and filled_tiles + tile_count > most_tiles:
            yield batch
            batch, filled_tiles = [], 0
        batch.append(view)
        filled_tiles += tile_count
    if batch:
        yield batch
