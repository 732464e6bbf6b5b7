"""One table in three formats; whatever a name holds, the LaTeX compiles."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from m3.evaluation.report.table_formats import LATEX, Table, as_latex, as_markdown, as_text, latex

NASTY = r"100% of a_b & c#1 {x} $5 ~y^2 \z <t> | 1±2"
TABLE = Table(
    "nasty",
    f"Caption {NASTY}",
    ["tokens", NASTY],
    [["1", "50.0±1.2"], ["4*", NASTY]],
    {1: f"block {NASTY}"},
    NASTY,
)


def test_latex_escapes_every_special_character():
    text = as_latex(TABLE)
    plain = text
    for command in (*LATEX.values(), r"\begin", r"\end", r"\caption", r"\label", r"\centering", r"\toprule", r"\midrule",
                    r"\bottomrule", r"\multicolumn", r"\textit", r"\par\smallskip", r"\footnotesize", r"\\"):  # fmt: skip
        plain = plain.replace(command, " ")
    assert not re.search(
        r"[\\%$#_^~<>|±]", plain.replace("{table}", "").replace("tab:m3-nasty", "")
    )
    assert text.count("{") == text.count("}")
    assert latex("a_b & 5 %") == r"a\_b \& 5 \%"
    assert latex("\\") == r"\textbackslash{}"


def test_latex_has_as_many_cells_as_columns():
    lines = [line for line in as_latex(TABLE).splitlines() if line.endswith(r"\\")]
    assert len(lines) == 4  # header, two rows, a block
    for line in lines:
        ampersands = len(re.findall(r"(?<!\\)&", line))
        assert ampersands == (0 if "multicolumn" in line else 1)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path):
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{as_latex(TABLE)}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True
    )


def test_markdown_keeps_pipes_inside_cells():
    lines = as_markdown(TABLE).splitlines()
    assert lines[3] == "|---|---:|"
    for line in lines[2:7]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_text_lines_up():
    lines = as_text(
        Table("t", "c", ["a", "bb"], [["1", "2"], ["333", "4"]], {0: "one", 1: "two"})
    ).splitlines()
    assert lines == ["  a  bb", "", "one", "  1   2", "", "two", "333   4"]
