"""Image features kept for the next request, by the digest of their content, in bounded memory.

In: a digest, and where it is new what the tower takes. Out: `VisualFeatures`, which can be read at any scale.
So the same image at another scale, in another conversation or from another client costs no second
look.
"""

from collections.abc import Sequence

from torch import Tensor

from m3.inference.feature_cache import FeatureStore
from m3.inference.image_features import VisualFeatures, encode_tiles
from m3.model import M3ForConditionalGeneration
from m3.processing import TiledImages
from m3.serving.engine.metrics import Metrics


class Features:
    """Features of images; `find` may be called from any thread, `see` from the model's alone."""

    def __init__(self, model: M3ForConditionalGeneration, max_bytes: int, metrics: Metrics) -> None:
        self._model, self._metrics = model, metrics
        self._store = FeatureStore(max_bytes, _count_bytes)

    def find(self, digest: str) -> VisualFeatures | None:
        """None where it is not kept (any more)."""
        return self._store.find(digest)

    def see(self, digest: str, prepared: Sequence[TiledImages]) -> VisualFeatures:
        """Looks, unless another request has looked at the same in the meantime."""
        cached_features = self.find(digest)
        if cached_features is not None:
            return cached_features
        features: list[Tensor] = []
        for batch in prepared:
            # a view would keep its whole batch
            features += [
                tile_features.clone() for tile_features in encode_tiles(self._model, batch)
            ]
            self._metrics.tower_images.inc(len(batch.images))
        self._metrics.tower_runs.inc(len(prepared))
        seen_image = VisualFeatures(
            digest,
            "",
            tuple(prepared_image for batch in prepared for prepared_image in batch.images),
            tuple(features),
        )
        self._store.add(digest, seen_image)
        self._store.trim()
        self._metrics.cache_bytes.set(self._store.bytes)
        self._metrics.cache_entries.set(len(self._store))
        return seen_image


def _count_bytes(seen_image: VisualFeatures) -> int:
    return sum(tile_features.nbytes for tile_features in seen_image.features)
