"""What the docs say is there is there, and their code runs."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from m3.cli import VERBS
from m3.data.formats import FormatSamples
from m3.data.formats.settings import SourceSettings
from m3.data.sample import Sample, Turn

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
REFERENCE = re.compile(r"`((?:m3|tests|scripts)/[\w/.-]+?\.(?:py|yaml|sh))(?::([\w.]+))?`")
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def references(page: Path) -> list[tuple[str, str]]:
    return REFERENCE.findall(page.read_text())


def defined(path: Path) -> set[str]:
    """Names of the functions and classes of a file, and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, FUNCTION | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, FUNCTION)
            }
    return names


def test_the_pages_are_seen() -> None:
    assert {page.name for page in PAGES} >= {
        "README.md",
        "CONTRIBUTING.md",
        "one_image.md",
        "add_a_decoder.md",
    }
    for walk, least in (("image", 35), ("request", 20), ("recipe_line", 18), ("sweep_cell", 18)):
        assert len(references(ROOT / "docs" / f"one_{walk}.md")) >= least


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_named_exists(page: Path) -> None:
    missing = [
        f"{file}:{name}"
        for file, name in references(page)
        if not (ROOT / file).is_file() or (name and name not in defined(ROOT / file))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [
        link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()
    ] == []


def test_every_verb_shown_exists() -> None:
    shown = {
        verb
        for page in PAGES
        for verb in re.findall(r"(?:^|`)m3 ([\w-]+)", page.read_text(), re.MULTILINE)
    }
    assert len(shown) >= 4
    assert shown <= set(VERBS)


def test_adding_a_decoder_works_as_written() -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "add_a_decoder.md").read_text())
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "docs/add_a_decoder.md", "exec"), {"__name__": "add_a_decoder"})


def test_adding_a_data_format_works_as_written(tmp_path: Path) -> None:
    (block,) = [
        text for text in BLOCK.findall((ROOT / "docs" / "data.md").read_text()) if "ALPACA" in text
    ]
    names: dict[str, Any] = {"__name__": "add_a_data_format"}
    exec(compile(block, "docs/data.md", "exec"), names)
    record = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    (tmp_path / "a.json").write_text(
        json.dumps([record, record | {"image": "b.png"}, record | {"text": "x"}])
    )
    samples = FormatSamples(names["ALPACA"], SourceSettings(path=str(tmp_path / "a.json")))
    turns = (Turn("user", "Translate.\nchat"), Turn("assistant", "cat"))
    assert samples[0] == Sample("0", (), turns)
    assert samples[1].images == (str(tmp_path / "b.png"),)
    with pytest.raises(ValueError, match="key 'text' is not read here"):
        samples[2]


def test_the_readmes_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the clone, and outside of it with the paths of the clone; what is printed is the answer
    alone.
    """
    (block,) = BLOCK.findall((ROOT / "README.md").read_text())
    elsewhere = block.replace('"playground/', f'"{ROOT}/playground/').replace(
        '"m3/', f'"{ROOT}/m3/'
    )
    assert elsewhere.count(str(ROOT)) == 3
    for folder, code in ((ROOT, block), (tmp_path, elsewhere)):
        monkeypatch.chdir(folder)
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        assert capsys.readouterr().out == "purple\n"
