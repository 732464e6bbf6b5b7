"""Put sequences of different lengths into as few rows as needed, filled evenly.

All rows of a batch are padded to the fullest, so what is wasted is the difference between rows, not
the room that is left in
them: the longest sequence goes into the emptiest row (Graham 1969, LPT: the fullest row is at most
4/3 of the shortest possible one). Where that overfills a row, one row more is taken.
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
        images: which images each sequence shows; a row counts each image once, however often it is
            shown.
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
            raise ValueError(
                f"sequence {number} shows {len(set(shown))} images; a row may show {max_images}"
            )
    rows = -(-sum(lengths) // max_length)
    while True:
        packed = _spread(lengths, images, rows, max_length, max_images, prefer_shown=False)
        if (
            packed is None and max_images is not None
        ):  # evenly filled rows show more images than rows filled image by image
            packed = _spread(lengths, images, rows, max_length, max_images, prefer_shown=True)
        if packed is not None:
            return packed
        rows += 1


def _spread(
    lengths: Sequence[int],
    images: Sequence[Collection[int]],
    rows: int,
    max_length: int,
    max_images: int | None,
    prefer_shown: bool,
) -> list[list[int]] | None:
    """Longest first, each into the emptiest row that may take it; None where a sequence finds no
    row.

    prefer_shown: among those rows, into one that shows most of the sequence's images already.
    """
    packed: list[list[int]] = [[] for _ in range(rows)]
    shown: list[set[int]] = [set() for _ in range(rows)]
    tokens = [0] * rows
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        best: tuple[int, int, int] | None = None
        for row in range(rows):
            new_images = len(set(images[number]) - shown[row])
            has_room = tokens[row] + lengths[number] <= max_length
            if has_room and (max_images is None or len(shown[row]) + new_images <= max_images):
                rank = (new_images if prefer_shown else 0, tokens[row], row)
                best = rank if best is None else min(best, rank)
        if best is None:
            return None
        row = best[-1]
        packed[row].append(number)
        shown[row].update(images[number])
        tokens[row] += lengths[number]
    return packed
