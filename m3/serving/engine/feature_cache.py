"""Image features kept for the next request, by the digest of their content and by resolution, in
bounded memory.

In: what was prepared of a visual. Out: `PictureFeatures`, which can be read at any scale of their
resolution. So the same image at another scale, in another conversation or from another client costs
no second look; at another resolution it costs one, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from m3.inference.feature_cache import FeatureStore
from m3.inference.image_features import PictureFeatures, TowerBatch, View, see_batch
from m3.model import M3ForConditionalGeneration
from m3.nesting import Tiles
from m3.serving.engine.metrics import Metrics

Views = Mapping[View, PictureFeatures]
"""What was seen of an image, or of the frames of a video, at the resolutions asked for so far."""


@dataclass(frozen=True)
class Sight:
    """A visual at the resolutions of its budgets, or of its cheapest view: what was kept of it, and
    what the tower has yet to see.

    `views`, `tiles`: of each still or frame.
    """

    digest: str
    views: tuple[View, ...]
    tiles: tuple[Tiles, ...]
    kept: Views
    batches: tuple[TowerBatch, ...]


class Features:
    """Features of images; `find` may be called from any thread, `see` from the model's alone."""

    def __init__(self, model: M3ForConditionalGeneration, max_bytes: int, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics
        self._store = FeatureStore[Views](max_bytes, _count_bytes)

    def find(self, digest: str) -> Views:
        """Empty where nothing is kept (any more)."""
        return self._store.find(digest) or {}

    def see(self, sight: Sight) -> list[PictureFeatures]:
        """Features of each still or frame of a visual; the tower runs unless another request had
        it see the same in the meantime.
        """
        views = {**sight.kept, **self.find(sight.digest)}
        new_batches = [b for b in sight.batches if not all(view in views for view in b.views)]
        for batch in new_batches:
            views |= see_batch(self._model, batch)
            self._metrics.tower_images.inc(len(batch.views))
        if new_batches:
            self._metrics.tower_runs.inc(len(new_batches))
            # a new mapping in place of the old one, which other threads may be reading
            self._store.add(sight.digest, views)
            self._store.trim()
            self._metrics.cache_bytes.set(self._store.bytes)
            self._metrics.cache_entries.set(len(self._store))
        return [views[view] for view in sight.views]


def _count_bytes(views: Views) -> int:
    return sum(picture.tokens.nbytes for picture in views.values())
