"""Strict reading of records: every key is read, refused because it holds content, or named as not
used.

In: an object of a record, read key by key. Out: values; at `close` a `ValueError` for content that
no reader asked for, and the names of all other keys, which `m3 data check` lists.
`m3/data/formats/content_keys.py` says what content is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from m3.data.formats.content_keys import holds_content, is_content_file, is_given
from m3.data.formats.tar_index import Group, Member


@dataclass
class Unused:
    """Parts of one record that are not used.

    `ignore`: keys that the source is told to leave out whatever they hold.
    """

    ignore: frozenset[str] = frozenset()
    keys: list[str] = field(default_factory=list)

    def ignores(self, *names: str) -> bool:
        """Tell whether the source is told to leave out a key that has these names."""
        return not self.ignore.isdisjoint(names)


class Fields:
    """One object of a record. A value that is null, empty or NaN counts as absent."""

    def __init__(
        self, values: Mapping[str, Any], where: str, unused: Unused, place: str = ""
    ) -> None:
        """
        Args:
            values: the decoded object.
            where: file and record, for messages.
            unused: of the record.
            place: what the object is called inside the record, for the names of its keys:
                `conversations`.
        """
        self.values, self.where, self._unused = values, where, unused
        self._prefix = f"{place}." if place else ""
        self._asked: dict[str, None] = {}

    def raw(self, name: str) -> Any:
        """The value as it stands, empty ones too; None where the key is absent or ignored."""
        self._asked[name] = None
        return None if self._ignored(name) else self.values.get(name)

    def take(self, *names: str) -> Any:
        """The value of the one of `names` that is there; None without any.

        Raises:
            ValueError: several are there.
        """
        values = {name: value for name in names if is_given(value := self.raw(name))}
        if len(values) > 1:
            raise ValueError(
                f"{self.where}: has {' and '.join(map(repr, values))}, of which only one can be "
                "read; remove the others, "
                "or list them under the source's `ignore`"
            )
        return next(iter(values.values()), None)

    def close(self, has_media: bool = False, strict: bool = False) -> None:
        """Refuse content that was not asked for, and note all other keys.

        Args:
            has_media: whether images or videos of the record were read, so that a path may say
                where they came from.
            strict: refuse other keys too.
        """
        for name, value in self.values.items():
            if not is_given(value) or (name in self._asked and not self._ignored(name)):
                continue
            if self._ignored(name):
                self._unused.keys.append(self._prefix + name)
            elif strict or holds_content(name, value, has_media):
                raise ValueError(
                    f"{self.where}: key {name!r} is not read here (read: "
                    f"{', '.join(self._asked)}), got {shown(value)}. "
                    f"Write it in the form that the format has, remove it, or list {name!r} under "
                    "the source's `ignore`"
                )
            else:
                self._unused.keys.append(self._prefix + name)

    def _ignored(self, name: str) -> bool:
        return name in self.values and self._unused.ignores(name, self._prefix + name)


def close_group(group: Group, used: Iterable[Member], unused: Unused) -> None:
    """Refuse images, sounds, videos and texts beside a tar's record that were not read, and note
    all other members.
    """
    read = frozenset(used)
    for member in group.members:
        ignored = unused.ignores(member.suffix, member.kind)
        if member in read and not ignored:
            continue
        if not ignored and is_content_file(member.suffix):
            raise ValueError(
                f"{group.where}: its member .{member.suffix} is not read, as nothing in the sample "
                "names it. Name it in the "
                f"record, take it out of the tar, or list {member.suffix!r} under the source's "
                "`ignore`"
            )
        unused.keys.append(f".{member.suffix}")


def shown(value: Any) -> str:
    """For messages: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
