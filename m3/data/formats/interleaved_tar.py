"""Interleaved text and images in tars: `k.json` beside the images it names, which are members of the same sample.

{"texts": [null, "A cat.", null], "images": ["0.jpg", null, "1.jpg"]}: in every slot either a text or an image, in
reading order. These are the keys of mllm-npu's pickled shards, with member names in the place of base64 text.
"""

from pathlib import Path
from typing import Any

from m3.data.formats.interleaved import document_from_slots
from m3.data.formats.record import shown
from m3.data.formats.tar_index import Group, TarIndex
from m3.data.sample import Document


class InterleavedTar:
    """One document per sample of the tars."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.

        Raises:
            ValueError: see `TarIndex`.
        """
        self._tars = TarIndex(path)

    def __len__(self) -> int:
        return len(self._tars)

    def __getitem__(self, index: int) -> Document:
        group = self._tars[index]
        record = group.record()
        slots = [text if image is None else group.read(group.named(image)) for text, image in _slots(record, group)]
        is_image = [isinstance(slot, bytes) for slot in slots]
        return document_from_slots(group.key, slots, is_image, group.where)


def _slots(record: Any, group: Group) -> list[tuple[Any, Any]]:
    texts, images = (record.get("texts"), record.get("images")) if isinstance(record, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise ValueError(
            f"{group.where}: expected an object with 'texts' and 'images', lists of one length, got {shown(record)}"
        )
    for number, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None) or not isinstance(text if image is None else image, str):
            raise ValueError(
                f"{group.where}: slot {number} must hold a text or the name of an image, the other null; got "
                f"{shown(text)} and {shown(image)}"
            )
    return list(zip(texts, images, strict=True))
