"""Tables and durations as text for the terminal."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], left_columns: int = 0) -> list[str]:
    """A line per row, its columns under each other: the first `left_columns` to the left, the
    others to the right. Rows are equally long.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left_columns else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(seconds: float) -> str:
    """90 as 1 min 30 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
