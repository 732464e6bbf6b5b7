"""The suite is a function of its seed, its splits are disjoint, and the shipped test set is what
the code draws.
"""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from m3.data.synthetic import suite
from m3.data.synthetic.command import main
from m3.data.synthetic.suite import FAMILIES, generate
from m3.data.synthetic.vocabulary import PATCH_CLASSES, PATCH_SLOTS

SHIPPED = Path(__file__).parents[3] / "lmms_eval_tasks" / "m3_tiny" / "data"
SHIPPED_SEED = 0
SHIPPED_DOCUMENTS = 200


def file_digests(files: list[Path]) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pixel_digest(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


@pytest.mark.slow
def test_one_and_two_workers_write_the_same_files(tmp_path: Path) -> None:
    alone = generate("train", 4, 7, tmp_path / "alone", progress=False, shard_rows=10)
    pair = generate("train", 4, 7, tmp_path / "pair", workers=2, progress=False, shard_rows=10)
    assert [file.name for file in alone] == [
        f"train-{shard:05d}-of-00003.parquet" for shard in range(3)
    ]
    assert file_digests(alone) == file_digests(pair)
    other = generate("train", 4, 8, tmp_path / "other", progress=False, shard_rows=10)
    assert not set(file_digests(alone).values()) & set(file_digests(other).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_depends_on_its_index_alone(family: str) -> None:
    later_first = [suite.train_row(family, index, seed=1) for index in (5, 2)]
    in_order = [suite.train_row(family, index, seed=1) for index in (2, 5)]
    assert later_first == in_order[::-1]
    assert in_order[0]["image"]["bytes"] != in_order[1]["image"]["bytes"]


def test_a_smaller_run_removes_the_shards_of_a_larger_one(tmp_path: Path) -> None:
    generate("train", 4, 0, tmp_path, families=("scene",), progress=False, shard_rows=2)
    files = generate("train", 1, 0, tmp_path, families=("scene",), progress=False, shard_rows=2)
    assert (
        sorted((tmp_path / "train").iterdir())
        == files
        == [tmp_path / "train" / "train-00000-of-00001.parquet"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_test_picture_occurs_in_training(family: str) -> None:
    shown = suite.read_rows([SHIPPED / f"{family}.parquet"])
    assert len(shown) == SHIPPED_DOCUMENTS
    held_out = {pixel_digest(row["image"]["bytes"]) for row in shown}
    assert len(held_out) == SHIPPED_DOCUMENTS
    trained = {
        pixel_digest(suite.train_row(family, index, SHIPPED_SEED)["image"]["bytes"])
        for index in range(100)
    }
    assert len(trained) == 100
    assert not held_out & trained


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_documents_are_what_the_code_draws(family: str) -> None:
    shipped = suite.read_rows([SHIPPED / f"{family}.parquet"])
    drawn = [suite.test_row(family, index, SHIPPED_SEED) for index in range(SHIPPED_DOCUMENTS)]
    assert suite.content_digest(shipped) == suite.content_digest(drawn)


def test_content_digest_sees_answers_and_pixels() -> None:
    row = suite.test_row("scene", 0, 0)
    digest = suite.content_digest([row])
    assert suite.content_digest([{**row, "answer": "none"}]) != digest
    assert (
        suite.content_digest([{**row, "image": suite.test_row("scene", 1, 0)["image"]}]) != digest
    )


def test_shipped_data_is_small() -> None:
    files = sorted(SHIPPED.iterdir())
    assert [file.name for file in files] == [
        "baselines.json",
        *sorted(f"{family}.parquet" for family in FAMILIES),
    ]
    assert sum(file.stat().st_size for file in files) < 4 * 2**20


def test_baselines_are_those_of_the_shipped_documents() -> None:
    rows = suite.read_rows(
        [SHIPPED / f"{family}.parquet" for family in FAMILIES], ["family", "question", "answer"]
    )
    stated = json.loads((SHIPPED / "baselines.json").read_text(encoding="utf-8"))
    recomputed = suite.baselines(rows, SHIPPED_SEED)
    assert {family: dataclasses.asdict(numbers) for family, numbers in recomputed.items()} == stated
    assert stated["scene"]["chance"] == 1 / 8
    assert stated["document"]["chance"] == 1 / 32
    assert list(stated) == list(FAMILIES)
    assert all(numbers["majority"] < 0.3 for numbers in stated.values())


def test_baselines_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"family": "count", "question": "Count the shapes.", "answer": "3"},
        {"family": "count", "question": "How many shapes are there?", "answer": "5"},
        {"family": "count", "question": "How many stars are there?", "answer": "0"},
    ]
    monkeypatch.setattr(
        suite, "majority_answers", lambda *_: {"count_total": "5", "count_shape": "0"}
    )
    found = suite.baselines(rows, seed=0)["count"]
    assert found == suite.Baselines(
        chance=round((1 / 6 + 1 / 6 + 1 / 7) / 3, 6), majority=round(2 / 3, 6)
    )


def test_rows_load_through_datasets(tmp_path: Path) -> None:
    files = generate("train", 2, 0, tmp_path, progress=False)
    loaded = load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.num_rows == 2 * len(FAMILIES)
    assert loaded["family"][: len(FAMILIES)] == list(FAMILIES)
    for row in loaded:
        assert row["image"].size == (96, 96)
        assert row["image"].mode == "RGB"
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert len(speakers) >= 6
        texts = [turn["value"] for turn in row["conversations"]]
        assert texts[0].startswith("<image>\n")
        assert not any("<image>" in text for text in texts[1:])
        labels = (
            np.frombuffer(row["patch_class"], np.uint8),
            np.frombuffer(row["patch_slot"], np.uint8),
        )
        assert labels[0].shape == labels[1].shape == (144,)
        assert labels[0].max() < len(PATCH_CLASSES)
        assert labels[1].max() < len(PATCH_SLOTS)
        assert labels[0].any()


def test_command_writes_both_splits(tmp_path: Path) -> None:
    assert (
        main(
            ["--out", str(tmp_path), "--train", "1", "--test", "2", "--seed", "5", "--workers", "1"]
        )
        == 0
    )
    made = json.loads((tmp_path / "suite.json").read_text(encoding="utf-8"))
    assert (made["seed"], made["train_per_family"], made["test_per_family"]) == (5, 1, 2)
    assert tuple(made["patch_classes"]) == PATCH_CLASSES
    assert tuple(made["patch_slots"]) == PATCH_SLOTS
    assert sorted(file.name for file in (tmp_path / "test").iterdir()) == sorted(
        ["baselines.json", *(f"{family}.parquet" for family in FAMILIES)]
    )
    assert len(suite.read_rows(list((tmp_path / "train").iterdir()))) == len(FAMILIES)
    assert len(suite.read_rows([tmp_path / "test" / "digits.parquet"])) == 2


def test_mistakes_are_named(tmp_path: Path) -> None:
    known = "expected one of scene, position, count, digits, chart, document"
    with pytest.raises(ValueError, match=f"unknown family 'scenes': {known}"):
        generate("train", 1, 0, tmp_path, families=("scenes",))
    with pytest.raises(ValueError, match=f"unknown family 'maps': {known}"):
        suite.draw_picture("test", "maps", 0, 0)
    with pytest.raises(
        ValueError, match="expected at least 1 picture per family and 1 worker, got 0 and 1"
    ):
        generate("train", 0, 0, tmp_path)
    with pytest.raises(ValueError, match="the family 'scene' asks no such question: 'Why\\?'"):
        suite.question_kind("scene", "Why?")
    assert not list(tmp_path.iterdir())
