"""The store forgets nothing that was written, and only what was cut."""

from dataclasses import replace
from pathlib import Path

import pytest

from m3.digest import digest, digest_files
from m3.evaluation.results.store import Answer, Cell, Store

CELL = Cell("weights", "task", "dataset", "document", "prompt", 9, "grid_pool")
ANSWER = Answer(CELL, "tiny", 3, "red\n“é”", None, 9, 21, 2, 0.25, ("image",), 0.5)


def test_round_trip(tmp_path: Path):
    scored = replace(ANSWER, cell=replace(CELL, scale=4), log_likelihood=(-1.5, True), text="")
    with Store(tmp_path) as store:
        store.add_answers([ANSWER, scored])
        store.add_scores({CELL.key: {"exact_match": 1.0}})
    again = Store(tmp_path)
    assert len(again) == 2
    assert (again.answer(CELL.key), again.answer(scored.cell.key)) == (ANSWER, scored)
    assert again.scores(CELL.key) == {"exact_match": 1.0}
    assert again.scores(scored.cell.key) == {}
    assert "unknown" not in again


@pytest.mark.parametrize(
    "field", ["weights", "task", "dataset", "document", "prompt", "scale", "method"]
)
def test_every_part_of_a_cell_is_in_its_key(field: str):
    other = replace(CELL, **{field: 10 if field == "scale" else "other"})
    assert other.key != CELL.key == replace(CELL).key


def test_every_cut_of_the_last_line_loses_that_line_alone(tmp_path: Path):
    with Store(tmp_path / "whole") as store:
        store.add_answers([ANSWER, replace(ANSWER, cell=replace(CELL, scale=36))])
    (path,) = (tmp_path / "whole").glob("*.jsonl")
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    cuts = [first, first + 1, first + 40, len(content) - 2, len(content) - 1]
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(content[:cut])
        with Store(folder) as store:
            assert len(store) == 1
            assert CELL.key in store
            # goes to a file of its own
            store.add_answers([replace(ANSWER, cell=replace(CELL, scale=36))])
        assert len(Store(folder)) == 2


def test_a_broken_line_inside_is_an_error(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        '{"kind": "score", "key": "k", "sco\n{"kind": "score", "key": "k", "scores": {}}\n'
    )
    with pytest.raises(
        ValueError, match=r"line 1 of .*a\.jsonl is not a record .* Remove this file"
    ):
        Store(tmp_path)


def test_nothing_is_written_twice(tmp_path: Path):
    with Store(tmp_path) as store:
        store.add_answers([ANSWER, ANSWER])
        store.add_scores({CELL.key: {"exact_match": 1.0}})
        store.add_scores({CELL.key: {"exact_match": 1.0}})
        store.add_scores({CELL.key: {"exact_match": 0.0}})
    (path,) = tmp_path.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 3
    assert Store(tmp_path).scores(CELL.key) == {"exact_match": 0.0}


def test_two_writers_share_a_folder(tmp_path: Path):
    left, right = Store(tmp_path), Store(tmp_path)
    left.add_answers([ANSWER])
    right.add_answers([replace(ANSWER, cell=replace(CELL, scale=1))])
    assert len(Store(tmp_path)) == 2


def test_digests():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_file_digest_follows_names_and_contents_not_places(tmp_path: Path):
    found = []
    for place, name, content in (
        ("x", "a", "1"),
        ("y", "a", "1"),
        ("x2", "b", "1"),
        ("x3", "a", "2"),
    ):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(content)
        found.append(digest_files([tmp_path / place / name], tmp_path / place))
    assert found[0] == found[1]
    assert len(set(found)) == 3
