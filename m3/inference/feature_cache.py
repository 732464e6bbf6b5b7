"""A bounded store of features, which the evaluation and the server keep between questions."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Features = TypeVar("Features")


class FeatureStore(Generic[Features]):
    """Features by key, up to `max_bytes`; the least recently used leave first. Any thread may
    call.
    """

    def __init__(self, max_bytes: int, count_bytes: Callable[[Features], int]) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._count_bytes = count_bytes
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def find(self, key: str) -> Features | None:
        """None where it is not kept (any more)."""
        with self._lock:
            if key not in self._features:
                return None
            self._features.move_to_end(key)
            return self._features[key]

    def add(self, key: str, features: Features) -> None:
        """Keep features, in place of any of the same key; beyond `max_bytes` until `trim`."""
        with self._lock:
            replaced_features = self._features.pop(key, None)
            if replaced_features is not None:
                self.bytes -= self._count_bytes(replaced_features)
            self._features[key] = features
            self.bytes += self._count_bytes(features)

    def trim(self, least_entries: int = 0) -> None:
        """Drop what is beyond `max_bytes`, but for the last `least_entries`."""
        with self._lock:
            while self.bytes > self.max_bytes and len(self._features) > least_entries:
                _, dropped = self._features.popitem(last=False)
                self.bytes -= self._count_bytes(dropped)
