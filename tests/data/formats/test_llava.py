"""LLaVA's data as JSON and as parquet gives the same samples, and bad records are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3.data.formats import FormatSamples
from m3.data.recipe import Source, open_source
from m3.data.sample import Sample, Turn
from m3.processing import load_image

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TEXT = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]
PAIR = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "b"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def llava_json(path: Path, **options: Any) -> FormatSamples:
    return open_source(Source(path=str(path), **options))


def llava_parquet(path: Path, **options: Any) -> FormatSamples:
    return open_source(Source(path=str(path), format="llava_parquet", **options))


def write_json(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: dict[str, list[Any]], image: Any = None) -> Path:
    feature = datasets.Image() if image is None else image
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": feature, "conversations": datasets.List(turn)}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


# ---------------------------------------------------------------------- json
def test_json(tmp_path: Path) -> None:
    records = [
        {"id": "a", "image": "one.png", "conversations": TALK},
        {"id": 7, "conversations": TEXT},
        {"image": ["x/one.png", "two.png"], "conversations": PAIR},
        {"id": "null", "image": None, "conversations": TEXT},
    ]
    source = llava_json(
        write_json(tmp_path / "d.json", records), image_folder=str(tmp_path / "images")
    )
    assert len(source) == 4
    assert source[0] == Sample(
        "a",
        (str(tmp_path / "images" / "one.png"),),
        (Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")),
    )
    assert (source[1].id, source[1].images) == ("7", ())
    assert (source[2].id, len(source[2].images)) == ("2", 2)
    assert source[3].images == ()
    assert llava_json(tmp_path / "d.json")[0].images == (str(tmp_path / "one.png"),)


def test_json_lines_with_a_line_separator_inside_a_text(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "a\u2028b"}, {"from": "gpt", "value": "日本"}]
    path = tmp_path / "d.jsonl"
    path.write_text(
        "\n".join(json.dumps({"id": n, "conversations": talk}, ensure_ascii=False) for n in "ab")
        + "\n\n",
        "utf-8",
    )
    source = llava_json(path)
    assert [source[n].id for n in range(len(source))] == ["a", "b"]
    assert source[1].turns == (Turn("user", "a\u2028b"), Turn("assistant", "日本"))


def test_files_that_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json: no such data file"):
        llava_json(tmp_path / "nowhere.json")
    (tmp_path / "a.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON: .*line 1 column 3"):
        llava_json(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text('{}\n{"a":\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: not valid JSON"):
        llava_json(tmp_path / "b.jsonl")[1]
    (tmp_path / "c.json").write_text('{"id": 1}')
    with pytest.raises(
        ValueError,
        match=r"c\.json: expected a JSON list of records, got a mapping: .*\. "
        r"One object per line\?",
    ):
        llava_json(tmp_path / "c.json")
    (tmp_path / "d.json").write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"d\.json: not UTF-8 text"):
        llava_json(tmp_path / "d.json")


BAD_RECORDS = [
    ("just text", "expected an object with id, image and conversations, got 'just"),
    ({"id": 1}, "'conversations' must be a list of turns, got None"),
    ({"conversations": []}, "sample '1': turns must go user, assistant, .* got no turns"),
    (
        {"conversations": [{"from": "human"}]},
        r"turn 0: expected an object with 'from' and 'value', got {'from': 'human'}",
    ),
    (
        {"conversations": [{"from": "bot", "value": "x"}]},
        "turn 0: 'from' must be one of human, gpt, user, .* got 'bot'",
    ),
    (
        {"conversations": [TALK[0], {"from": "gpt", "value": 3}]},
        "turn 1: 'value' must be text, got 3",
    ),
    ({"conversations": [TALK[0], TALK[0]], "image": ["a", "b"]}, "got user, user"),
    ({"conversations": TALK}, "1 <image> marks in the user's turns but 0 images"),
    (
        {"conversations": TALK, "image": 3},
        "'image' must be a path, encoded bytes, a list of these or absent, got 3",
    ),
    ({"conversations": TALK, "image": ""}, "1 <image> marks in the user's turns but 0 images"),
    (
        {"conversations": TALK, "image": {"bytes": None, "path": None}},
        "1 <image> marks .* but 0 images",
    ),
    ({"conversations": TALK, "image": ["a.png", ""]}, "'image' must be a path"),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_records_say_which_file_which_record_and_what(
    record: Any, message: str, tmp_path: Path
) -> None:
    good = {"id": "ok", "conversations": TEXT}
    source = llava_json(write_json(tmp_path / "d.json", [good, record, good]))
    assert [source[0].id, source[2].id] == ["ok", "ok"]
    with pytest.raises(ValueError, match=rf"^.*d\.json, record 1[,:] .*{message}"):
        source[1]
    with pytest.raises(IndexError, match=r"record 3 of .*d\.json, which has 3"):
        source[3]


# ---------------------------------------------------------------------- parquet
def test_parquet_with_one_image_per_row(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    rows = {
        "id": ["a", "b"],
        "image": [{"bytes": png(9), "path": None}, None],
        "conversations": [TALK, TEXT],
    }
    source = llava_parquet(write_parquet(tmp_path / "d.parquet", rows))
    assert len(source) == 2
    assert source[0] == Sample(
        "a", (png(9),), (Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat."))
    )
    assert source[1].images == ()
    assert load_image(source[0].images[0]).getpixel((0, 0)) == (9, 0, 0)


def test_parquet_with_several_images_per_row(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    images = [[{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}], []]
    rows = {"id": ["a", "b"], "image": images, "conversations": [PAIR, TEXT]}
    source = llava_parquet(
        write_parquet(tmp_path / "d.parquet", rows, datasets.List(datasets.Image()))
    )
    assert source[0].images == (png(1), png(2))
    assert source[1].images == ()


def test_parquet_written_without_datasets(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    """Plain structs and bare bytes, other columns beside them."""
    for name, image in (("struct", {"bytes": png(3), "path": "x.png"}), ("bytes", png(3))):
        folder = tmp_path / name
        folder.mkdir()
        table = pa.table({"conversations": [TALK], "image": [image], "labels": [[1, 2, 3]]})
        pq.write_table(table, folder / "d.parquet")
        sample = llava_parquet(folder)[0]
        assert (sample.id, sample.images) == ("0", (png(3),))


def test_parquet_with_paths(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (5, 0, 0)).save(tmp_path / "one.png")
    pq.write_table(
        pa.table({"id": ["a"], "conversations": [TALK], "image": ["one.png"]}),
        tmp_path / "d.parquet",
    )
    sample = llava_parquet(tmp_path / "d.parquet", image_folder=str(tmp_path))[0]
    assert load_image(sample.images[0]).getpixel((0, 0)) == (5, 0, 0)


def test_a_folder_and_a_pattern(tmp_path: Path) -> None:
    for name in "ba":
        write_parquet(
            tmp_path / f"{name}.parquet", {"id": [name], "image": [None], "conversations": [TEXT]}
        )
    assert [llava_parquet(tmp_path)[n].id for n in range(2)] == ["a", "b"]
    assert [llava_parquet(tmp_path / "*.parquet")[n].id for n in range(2)] == ["a", "b"]


def test_changed_files_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    for name in ("first", "second one"):
        write_parquet(path, {"id": [name], "image": [None], "conversations": [TEXT]})
        assert llava_parquet(path)[0].id == name


def test_bad_parquet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.parquet: no such data file"):
        llava_parquet(tmp_path / "nowhere.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no \*\.parquet"):
        llava_parquet(tmp_path / "empty")
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as parquet"):
        llava_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(
        ValueError,
        match=r"b\.parquet: no column 'conversations' \(columns: text\)\. LLaVA's "
        r"columns are id, ",
    ):
        llava_parquet(tmp_path / "b.parquet")
    write_parquet(tmp_path / "c.parquet", {"id": ["a"], "image": [None], "conversations": [TALK]})
    source = llava_parquet(tmp_path / "c.parquet")
    with pytest.raises(
        ValueError,
        match=r"c\.parquet, record 0: sample 'a': 1 <image> marks in the user's turns "
        r"but 0",
    ):
        source[0]
    with pytest.raises(IndexError, match="which has 1"):
        source[1]
