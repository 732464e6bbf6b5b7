"""Slots of text and images in turn become a `Document`. Shared by the two interleaved formats."""

from collections.abc import Sequence

from m3.data.sample import Document


def document_from_slots(
    id: str,
    slots: Sequence[str | bytes],
    is_image: Sequence[bool],
    where: str,
    unused: Sequence[str] = (),
) -> Document:
    """Slots in reading order; neighbouring texts are joined by one space, as sentences are.

    Args:
        id: of the document.
        slots: a text, or an image as a path or bytes.
        is_image: of each slot.
        where: file and place, for messages.
        unused: keys of the record that were not read.

    Raises:
        ValueError: there is no text.
    """
    texts: list[list[str]] = [[]]
    images: list[str | bytes] = []
    for slot, shows in zip(slots, is_image, strict=True):
        if shows:
            images.append(slot)
            texts.append([])
        else:
            assert isinstance(slot, str)  # the formats check what they read
            texts[-1].append(slot.strip())
    try:
        joined = tuple(" ".join(text for text in part if text) for part in texts)
        return Document(id, tuple(images), joined, tuple(unused))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
