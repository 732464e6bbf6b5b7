"""LLaVA's conversations in tars: `k.json` ({"conversations": [...]}) beside `k.jpg`, or `k.0.jpg`,
`k.1.jpg` ...

The images (or videos) of a sample are all its members of that kind in the order of the tar, or
those that the record's `image` (or `video`) names; one that is then left over is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from m3.data.formats.content_keys import VIDEO_SUFFIXES, is_given
from m3.data.formats.fields import close_group, shown
from m3.data.formats.record import Options, RecordReader
from m3.data.formats.tar_index import Group, TarIndex
from m3.data.sample import Sample


class LlavaTar:
    """One conversation per sample of the tars."""

    def __init__(
        self, path: str | Path, num_frames: int | None = None, ignore: Iterable[str] = ()
    ) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.
            num_frames, ignore: of `Options`.

        Raises:
            ValueError: see `TarIndex`.
        """
        self._tars = TarIndex(path)
        self.options = Options.of(None, num_frames, ignore)

    @property
    def unread(self) -> Mapping[str, int]:
        """Members that belong to no sample."""
        return self._tars.unread

    def __len__(self) -> int:
        return len(self._tars)

    def __getitem__(self, index: int) -> Sample:
        group = self._tars[index]
        record = group.record()
        if not isinstance(record, dict):
            raise ValueError(
                f"{group.where}: expected an object with conversations, got {shown(record)}"
            )
        used = group.find("json")

        def member(name: str) -> bytes:
            used.append(group.named(name))
            return group.read(used[-1])

        reader = RecordReader(
            _with_members(record, group, self.options), group.where, group.key, self.options, member
        )
        sample = reader.conversation()
        close_group(group, used, reader.unused)
        return replace(sample, unused=tuple(reader.unused.keys))


def _with_members(record: dict[str, Any], group: Group, options: Options) -> dict[str, Any]:
    """The record, with the media of its sample by name where it names none itself."""
    ignored = [
        member
        for member in group.members
        if not options.ignore.isdisjoint((member.suffix, member.kind))
    ]
    names = {
        "image": [member.suffix for member in group.images() if member not in ignored],
        "video": [member.suffix for member in group.find(*VIDEO_SUFFIXES) if member not in ignored],
    }
    own = [
        key
        for key, value in record.items()
        if key in ("image", "images", "video", "videos") and is_given(value)
    ]
    return record if own else record | {key: name for key, name in names.items() if name}
