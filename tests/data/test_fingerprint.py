"""Fingerprints of data: equal for equal content, other for other content, and bounded in what
they read.
"""

from pathlib import Path

import datasets
import pytest

from m3.data import fingerprint as module
from m3.data.fingerprint import bounded_digest, fingerprint
from m3.data.formats import FORMATS
from m3.data.recipe import Source, open_source


def prints(source: Source) -> dict[str, str]:
    return fingerprint(source, open_source(source))


def write_table(folder: Path, answers: list[str], form: str) -> Source:
    rows = [
        {
            "id": str(n),
            "conversations": [
                {"from": "human", "value": "How many?"},
                {"from": "gpt", "value": answer},
            ],
        }
        for n, answer in enumerate(answers)
    ]
    table = datasets.Dataset.from_list(rows)
    if form == "llava_parquet":
        table.to_parquet(folder / "a.parquet")
        return Source(path=str(folder / "a.parquet"), format="llava_parquet")
    table.save_to_disk(str(folder / "saved"))
    return Source(path=str(folder / "saved"), format="hf_dataset")


@pytest.mark.parametrize("form", ["llava_parquet", "hf_dataset"])
def test_tables_by_content(form: str, tmp_path: Path) -> None:
    found = {}
    for name, answers in (
        ("one", ["a", "b"]),
        ("same", ["a", "b"]),
        ("turned", ["b", "a"]),
        ("other", ["a", "c"]),
    ):
        (tmp_path / name).mkdir()
        found[name] = prints(write_table(tmp_path / name, answers, form))
    assert found["one"] == found["same"], (
        "where a table lies, when and how it was written says nothing of it"
    )
    for name in ("turned", "other"):
        assert (
            found[name]["content"] != found["one"]["content"]
            and found[name]["records"] != found["one"]["records"]
        )


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub" / "b.txt").write_text("two")
    source = Source(path=str(tmp_path), format="text_files")
    before = prints(source)
    (tmp_path / "sub" / "b.txt").write_text("tWo")
    assert prints(source)["records"] != before["records"]


def test_every_format_says_its_files() -> None:
    for name, row in FORMATS.items():
        assert callable(row.reader.find_files), name


def test_large_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change longer than the distance of two blocks is seen, and so is every other size."""
    monkeypatch.setattr(module, "BLOCK_SIZE", 64)
    content = bytes(range(256)) * 64
    file = tmp_path / "a.tar"
    file.write_bytes(content)
    seen = bounded_digest([file], tmp_path, limit=4096)
    assert seen == bounded_digest([file], tmp_path, limit=4096)
    for start in range(0, len(content) - 320, 320):
        file.write_bytes(content[:start] + bytes(320) + content[start + 320 :])
        assert bounded_digest([file], tmp_path, limit=4096) != seen, start
    file.write_bytes(content + b"x")
    assert bounded_digest([file], tmp_path, limit=4096) != seen
