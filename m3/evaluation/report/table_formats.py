"""A table once, written as text, Markdown and LaTeX, and its numbers as people read them. (The page
makes HTML of the same object.)

In: a `Table` of strings. Out: the text of each format, everything in it escaped for that format.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from m3.text_table import align_columns

LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "↓": r"$\downarrow$", "−": r"$-$", "×": r"$\times$", "≥": r"$\geq$", "–": "--", "∞": r"$\infty$",
}  # fmt: skip
"""What LaTeX reads as more than a character."""
NOTHING = "–"
"""In the place of a number that does not exist."""


@dataclass(frozen=True)
class Table:
    """`blocks`: a line over the row of that index, across all columns."""

    name: str  # of its files
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    blocks: Mapping[int, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), (
            f"a row of {self.name} has other columns"
        )


def as_text(table: Table) -> str:
    """Columns to the right, for the screen."""
    header_line, *row_lines = align_columns([table.header, *table.rows])
    text_lines = [header_line]
    for index, row_line in enumerate(row_lines):
        if index in table.blocks:
            text_lines += ["", table.blocks[index]]
        text_lines.append(row_line)
    return "\n".join(text_lines)


def as_markdown(table: Table) -> str:
    """A pipe table; a block's line is a row of its own."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown(cell) for cell in cells) + " |"

    markdown_lines = [
        f"**{table.caption}**",
        "",
        line(table.header),
        "|---|" + "---:|" * (len(table.header) - 1),
    ]
    for row_index, row in enumerate(table.rows):
        if row_index in table.blocks:
            markdown_lines.append(
                line([f"*{table.blocks[row_index]}*", *[""] * (len(table.header) - 1)])
            )
        markdown_lines.append(line(row))
    return "\n".join([*markdown_lines, *(["", table.note] if table.note else []), ""])


def markdown(text: str) -> str:
    """Text of a cell with what Markdown reads as more than a character escaped; `&lt;` since
    some readers take HTML.
    """
    return text.replace("\\", r"\\").replace("|", r"\|").replace("&", "&amp;").replace("<", "&lt;")


def as_latex(table: Table) -> str:
    r"""A float for `\input`; it needs the package booktabs."""
    column_count = len(table.header)
    latex_lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(table.caption)}}}",
        rf"\label{{tab:m3-{table.name}}}",
    ]
    latex_lines += [rf"\begin{{tabular}}{{l{'r' * (column_count - 1)}}}", r"\toprule"]
    latex_lines.append(" & ".join(latex(cell) for cell in table.header) + r" \\")
    for row_index, row in enumerate(table.rows):
        if row_index == 0 or row_index in table.blocks:
            latex_lines.append(r"\midrule")
        if row_index in table.blocks:
            latex_lines.append(
                rf"\multicolumn{{{column_count}}}{{l}}{{\textit{{{latex(table.blocks[row_index])}}}}} \\"
            )
        latex_lines.append(" & ".join(latex(cell) for cell in row) + r" \\")
    latex_lines += [r"\bottomrule", r"\end{tabular}"]
    latex_lines += [rf"\par\smallskip {{\footnotesize {latex(table.note)}}}"] if table.note else []
    return "\n".join([*latex_lines, r"\end{table}", ""])


def latex(text: str) -> str:
    """Text with every special character escaped."""
    return re.sub(
        "|".join(map(re.escape, LATEX)), lambda special_match: LATEX[special_match.group()], text
    )


def engineering(number: int | float | None, unit: str = "") -> str:
    """1234567 as 1.23 M; nothing for None."""
    if number is None:
        return ""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else three_digits(seconds * 1e3)


def three_digits(number: float) -> str:
    """Or all before the point where there are more: 1253, not 1.25e+03."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"
