"""A key map: the names of a foreign format's tensors beside ours, as a literal table that is read
both ways.

in: a name on one side; out: the name on the other, or None where the table says that the tensor is
    dropped.

`*` in a pattern stands for any text, the same on both sides. The first row that matches wins, in
either direction.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`foreign` and `native` hold the same number of `*`."""

    foreign: str
    native: str

    def __post_init__(self) -> None:
        assert self.foreign.count("*") == self.native.count("*"), (
            f"{self.foreign} and {self.native} differ in *"
        )


@dataclass(frozen=True)
class Dropped:
    """Tensors of the foreign format that have no place in ours, and why they may be left behind."""

    foreign: str
    why: str


@dataclass(frozen=True)
class Keymap:
    """The whole table of a format."""

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...] = ()

    def drops(self, foreign: str) -> bool:
        """Tell whether the table says that this tensor is left behind."""
        return any(_match(dropped_row.foreign, foreign) for dropped_row in self.dropped)

    def to_native(self, foreign: str) -> str | None:
        """Our name of a foreign tensor; None when no row knows it."""
        return next(
            (
                native_name
                for map_row in self.rows
                if (native_name := _rename(foreign, map_row.foreign, map_row.native))
            ),
            None,
        )

    def to_foreign(self, native: str) -> str | None:
        """The foreign name of one of our tensors; None when no row knows it."""
        return next(
            (
                foreign_name
                for map_row in self.rows
                if (foreign_name := _rename(native, map_row.native, map_row.foreign))
            ),
            None,
        )


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), name)


def _rename(name: str, source: str, target: str) -> str | None:
    name_match = _match(source, name)
    if name_match is None:
        return None
    matched_texts = iter(name_match.groups())
    return "".join(
        next(matched_texts) if target_piece == "*" else target_piece
        for target_piece in re.split(r"(\*)", target)
    )
