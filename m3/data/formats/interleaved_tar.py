"""Interleaved text and images in tars: `k.json` beside the images it names, which are members of
the same sample.

{"texts": [null, "A cat.", null], "images": ["0.jpg", null, "1.jpg"]}: in every slot either a text
or an image, in reading order. These are the keys of mllm-npu's pickled shards, with member names in
the place of base64 text.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from m3.data.formats.fields import Fields, Unused, close_group, shown
from m3.data.formats.interleaved import document_from_slots
from m3.data.formats.tar_index import Group, TarIndex
from m3.data.sample import Document


class InterleavedTar:
    """One document per sample of the tars."""

    def __init__(self, path: str | Path, ignore: Iterable[str] = ()) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.
            ignore: keys and kinds of members that are left out whatever they hold.

        Raises:
            ValueError: see `TarIndex`.
        """
        self._tars, self._ignore = TarIndex(path), frozenset(ignore)

    @property
    def unread(self) -> Mapping[str, int]:
        """Members that belong to no sample."""
        return self._tars.unread

    def __len__(self) -> int:
        return len(self._tars)

    def __getitem__(self, index: int) -> Document:
        group = self._tars[index]
        unused = Unused(self._ignore)
        pairs = _slots(group.record(), group, unused)
        members = [group.named(image) for _, image in pairs if image is not None]
        close_group(group, [*members, *group.find("json")], unused)
        slots = [text if image is None else group.read(group.named(image)) for text, image in pairs]
        is_image = [isinstance(slot, bytes) for slot in slots]
        return document_from_slots(group.key, slots, is_image, group.where, unused.keys)


def _slots(record: Any, group: Group, unused: Unused) -> list[tuple[Any, Any]]:
    fields = Fields(record if isinstance(record, dict) else {}, group.where, unused)
    texts, images = fields.raw("texts"), fields.raw("images")
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError(
            f"{group.where}: expected an object with 'texts' and 'images', lists of one length, "
            f"got {shown(record)}"
        )
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None) or not isinstance(
            text if image is None else image, str
        ):
            raise ValueError(
                f"{group.where}: slot {number} must hold a text or the name of an image, the other "
                "null; got "
                f"{shown(text)} and {shown(image)}"
            )
    fields.close(has_media=any(image is not None for image in images))
    return list(zip(texts, images, strict=True))
