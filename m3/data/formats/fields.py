"""Strict reading of records: every key is read, refused because it holds content, or named as not
used.

In: an object of a record, read key by key. Out: values; at `close` a `ValueError` for content that
no parser took, and the names of all other keys, which `m3 data check` lists.
m3/data/formats/content_keys.py says what content is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m3.data.formats.content_keys import holds_content, is_present


@dataclass
class UnusedKeys:
    """Keys of one record that are not used.

    `ignored_names`: keys that the source is told to leave out whatever they hold.
    """

    ignored_names: frozenset[str] = frozenset()
    keys: list[str] = field(default_factory=list)

    def ignores(self, *names: str) -> bool:
        """Tell whether the source is told to leave out a key that has these names."""
        return not self.ignored_names.isdisjoint(names)


class RecordFields:
    """One object of a record. A value that is null, empty or NaN counts as absent."""

    def __init__(
        self, values: Mapping[str, Any], location: str, unused: UnusedKeys, object_name: str = ""
    ) -> None:
        """
        Args:
            values: the decoded object.
            location: file and record, for messages.
            unused: of the record.
            object_name: what the object is called inside the record, for the names of its keys:
                `conversations`.
        """
        self.values, self.location, self._unused = values, location, unused
        self._prefix = f"{object_name}." if object_name else ""
        self._read_keys: dict[str, None] = {}

    def read_raw(self, key: str) -> Any:
        """The value as it stands, empty ones too; None where the key is absent or ignored."""
        self._read_keys[key] = None
        return None if self._is_ignored(key) else self.values.get(key)

    def read_one(self, *keys: str) -> Any:
        """The value of the one of `keys` that is present; None without any.

        Raises:
            ValueError: several are present.
        """
        values = {key: value for key in keys if is_present(value := self.read_raw(key))}
        if len(values) > 1:
            raise ValueError(
                f"{self.location}: has {' and '.join(map(repr, values))}, of which only one can be "
                "read; remove the others, or list them under the source's `ignore`"
            )
        return next(iter(values.values()), None)

    def close(self, has_media: bool = False, strict: bool = False) -> None:
        """Refuse content that was not read, and note all other keys.

        Args:
            has_media: whether images or videos of the record were read, so that a path may say
                where they came from.
            strict: refuse other keys too.
        """
        for key, value in self.values.items():
            is_ignored = self._is_ignored(key)
            if not is_present(value) or (key in self._read_keys and not is_ignored):
                continue
            if not is_ignored and (strict or holds_content(key, value, has_media)):
                raise ValueError(
                    f"{self.location}: key {key!r} is not read here (read: "
                    f"{', '.join(self._read_keys)}), got {shorten(value)}. Write it in the form "
                    f"that the format has, remove it, or list {key!r} under the source's `ignore`"
                )
            self._unused.keys.append(self._prefix + key)

    def _is_ignored(self, key: str) -> bool:
        return key in self.values and self._unused.ignores(key, self._prefix + key)


def shorten(value: Any) -> str:
    """A value for messages: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
