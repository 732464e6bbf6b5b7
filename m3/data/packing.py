"""Packing: sequences of different lengths in as few rows as needed, filled evenly.

All rows of a batch are padded to the fullest, so what is wasted is the difference between rows, not
the room that is left in them: the longest sequence goes into the emptiest row (Graham 1969, LPT:
the fullest row is at most 4/3 of the shortest possible one). Where that overfills a row, one row
more is taken.
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
    for sequence_number, (length, image_set) in enumerate(zip(lengths, images, strict=True)):
        if length > max_length:
            raise ValueError(
                f"sequence {sequence_number} has {length} tokens; a row holds {max_length}"
            )
        if max_images is not None and len(set(image_set)) > max_images:
            raise ValueError(
                f"sequence {sequence_number} shows {len(set(image_set))} images; a row may show "
                f"{max_images}"
            )
    num_rows = -(-sum(lengths) // max_length)
    while True:
        row_members = _spread_sequences(
            lengths, images, num_rows, max_length, max_images, prefer_seen=False
        )
        if row_members is None and max_images is not None:
            # evenly filled rows show more images than rows filled image by image
            row_members = _spread_sequences(
                lengths, images, num_rows, max_length, max_images, prefer_seen=True
            )
        if row_members is not None:
            return row_members
        num_rows += 1


def _spread_sequences(
    lengths: Sequence[int],
    images: Sequence[Collection[int]],
    num_rows: int,
    max_length: int,
    max_images: int | None,
    prefer_seen: bool,
) -> list[list[int]] | None:
    """Put each sequence, longest first, into the emptiest row with room for it; None without any.

    prefer_seen: among those rows, into one that shows most of the sequence's images already.
    """
    row_members: list[list[int]] = [[] for _ in range(num_rows)]
    row_images: list[set[int]] = [set() for _ in range(num_rows)]
    row_tokens = [0] * num_rows
    for sequence_number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        best_rank: tuple[int, int, int] | None = None
        for row_number in range(num_rows):
            new_images = len(set(images[sequence_number]) - row_images[row_number])
            has_room = row_tokens[row_number] + lengths[sequence_number] <= max_length
            if has_room and (
                max_images is None or len(row_images[row_number]) + new_images <= max_images
            ):
                rank = (new_images if prefer_seen else 0, row_tokens[row_number], row_number)
                best_rank = rank if best_rank is None else min(best_rank, rank)
        if best_rank is None:
            return None
        row_number = best_rank[-1]
        row_members[row_number].append(sequence_number)
        row_images[row_number].update(images[sequence_number])
        row_tokens[row_number] += lengths[sequence_number]
    return row_members
