"""Put sequences of different lengths into rows of a fixed length, wasting little.

First-fit-decreasing (Johnson 1973; Dosa 2007: never more than 11/9 of the fewest rows + 6/9): longest first, each into
the first row with room. With five scales of one sample, the short ones fill what the long ones leave.
"""

from collections.abc import Collection, Sequence


def pack(
    lengths: Sequence[int],
    images: Sequence[Collection[int]],
    max_length: int,
    max_images: int | None = None,
) -> list[list[int]]:
    """Rows of sequence numbers; every number in exactly one row.

    Args:
        lengths: tokens of each sequence.
        images: which images each sequence shows; a row counts each image once, however often it is shown.
        max_length: tokens a row may hold.
        max_images: distinct images a row may show, or None for any number.

    Raises:
        ValueError: a sequence that fits no row by itself. Nothing is ever cut.
    """
    if len(lengths) != len(images):
        raise ValueError(f"{len(lengths)} lengths but image sets for {len(images)} sequences")
    for number, (length, shown) in enumerate(zip(lengths, images, strict=True)):
        if length > max_length:
            raise ValueError(f"sequence {number} has {length} tokens; a row holds {max_length}")
        if max_images is not None and len(set(shown)) > max_images:
            raise ValueError(f"sequence {number} shows {len(set(shown))} images; a row may show {max_images}")

    rows: list[list[int]] = []
    room: list[int] = []
    shown_by_row: list[set[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        for row, free in enumerate(room):
            together = shown_by_row[row] | set(images[number])
            if lengths[number] <= free and (max_images is None or len(together) <= max_images):
                rows[row].append(number)
                room[row] -= lengths[number]
                shown_by_row[row] = together
                break
        else:
            rows.append([number])
            room.append(max_length - lengths[number])
            shown_by_row.append(set(images[number]))
    return rows
