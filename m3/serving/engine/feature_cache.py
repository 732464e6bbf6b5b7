"""Image features kept for the next request, by the digest of their content, in bounded memory.

In: a digest, and where it is new what the tower takes. Out: `VisualFeatures`, which can be read at any scale.
So the same image at another scale, in another conversation or from another client costs no second
look.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from m3.inference.image_features import VisualFeatures, encode_tiles
from m3.model import M3ForConditionalGeneration
from m3.processing import TiledImages
from m3.serving.engine.metrics import Metrics


class Features:
    """The least recently used leave first.

    `find` may be called from any thread, `see` from the model's alone.
    """

    def __init__(self, model: M3ForConditionalGeneration, max_bytes: int, metrics: Metrics) -> None:
        self._model, self._max_bytes, self._metrics = model, max_bytes, metrics
        self._kept: OrderedDict[str, VisualFeatures] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, digest: str) -> VisualFeatures | None:
        """None where it is not kept (any more)."""
        with self._lock:
            if digest not in self._kept:
                return None
            self._kept.move_to_end(digest)
            return self._kept[digest]

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
        self._keep(digest, seen_image)
        return seen_image

    def _keep(self, digest: str, seen_image: VisualFeatures) -> None:
        with self._lock:
            self._kept[digest] = seen_image
            self._bytes += _bytes(seen_image)
            while self._bytes > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _bytes(dropped)
            self._metrics.cache_bytes.set(self._bytes)
            self._metrics.cache_entries.set(len(self._kept))


def _bytes(seen_image: VisualFeatures) -> int:
    return sum(
        tile_features.numel() * tile_features.element_size()
        for tile_features in seen_image.features
    )
