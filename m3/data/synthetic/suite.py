"""The embedded suite: from a seed to parquet files of pictures, questions and per-patch labels.

In: split, seed, pictures per family. Out: `train/*.parquet` (LLaVA conversations, several questions
per picture, patch labels) or `test/<family>.parquet` (one question per picture), with images
embedded as `datasets.Image`.

A picture depends on (seed, split, family, index) alone: whatever the number of workers, and however
many pictures are asked for, picture `index` of a family is the same.
"""

import hashlib
import io
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm

from m3.data.synthetic import chart, count, digits, document, position, scene
from m3.data.synthetic.drawing import Drawn, Question, QuestionKind, Split
from m3.data.synthetic.vocabulary import IMAGE_SIZE

SHARD_ROWS: Final = 1024


@dataclass(frozen=True)
class Family:
    """One family of pictures: how one is drawn, and the kinds of question it carries."""

    draw: Callable[[Random, Split], Drawn]
    kinds: tuple[QuestionKind, ...]


FAMILIES: Final[dict[str, Family]] = {
    "scene": Family(scene.draw, scene.KINDS),
    "position": Family(position.draw, position.KINDS),
    "count": Family(count.draw, count.KINDS),
    "digits": Family(digits.draw, digits.KINDS),
    "chart": Family(chart.draw, chart.KINDS),
    "document": Family(document.draw, document.KINDS),
}

TRAIN_FEATURES: Final = Features(
    {
        "id": Value("string"),
        "family": Value("string"),
        "image": ImageFeature(),
        "conversations": List({"from": Value("string"), "value": Value("string")}),
        "patch_class": Value("binary"),
        "patch_slot": Value("binary"),
    }
)
TEST_FEATURES: Final = Features(
    {
        "id": Value("string"),
        "family": Value("string"),
        "image": ImageFeature(),
        "question": Value("string"),
        "answer": Value("string"),
        "cluster": Value("string"),
    }
)


@dataclass(frozen=True)
class Baselines:
    """What needs no eyes: expected accuracy of uniform guessing, and of the best constant answer
    per kind.
    """

    chance: float
    majority: float


@dataclass(frozen=True)
class _Shard:
    """One output file: which pictures (family, index) it holds, in order."""

    path: Path
    split: Split
    seed: int
    pictures: tuple[tuple[str, int], ...]


def draw(split: Split, family: str, index: int, seed: int) -> Drawn:
    """Picture `index` of a family.

    The split is part of the seed, so train and test share no picture.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family].draw(Random(f"{seed}/{split}/{family}/{index}"), split)


def generate(
    split: Split,
    count_per_family: int,
    seed: int,
    out_dir: Path | str,
    families: Sequence[str] = tuple(FAMILIES),
    workers: int = 1,
    progress: bool = True,
    shard_rows: int = SHARD_ROWS,
) -> list[Path]:
    """Write one split under `out_dir/<split>` and return the files in order.

    Training pictures alternate between the families in shards of `shard_rows`; the test split is
    one file per family. Files are written aside and renamed; shards left there by an earlier,
    larger run are removed. Raises ValueError for an unknown split or family, or a count or number
    of workers below 1.
    """
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
    if count_per_family < 1 or workers < 1:
        raise ValueError(
            "expected at least 1 picture per family and 1 worker, got "
            f"{count_per_family} and {workers}"
        )
    folder = Path(out_dir) / split
    shards = _plan(split, count_per_family, seed, folder, families, shard_rows)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {shard.path for shard in shards}
    for stale in folder.glob("*.parquet"):
        if stale not in expected:
            stale.unlink()
    with tqdm(
        total=count_per_family * len(families),
        desc=f"drawing {split}",
        unit="img",
        disable=not progress,
    ) as bar:
        if workers == 1:
            for shard in shards:
                bar.update(_write_shard(shard))
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                for rows in pool.imap_unordered(_write_shard, shards):
                    bar.update(rows)
    return [shard.path for shard in shards]


def _plan(
    split: Split,
    count_per_family: int,
    seed: int,
    folder: Path,
    families: Sequence[str],
    shard_rows: int,
) -> list[_Shard]:
    if split == "test":
        return [
            _Shard(
                folder / f"{family}.parquet",
                split,
                seed,
                tuple((family, index) for index in range(count_per_family)),
            )
            for family in families
        ]
    if split != "train":
        raise ValueError(f"unknown split {split!r}: expected train or test")
    pictures = [(family, index) for index in range(count_per_family) for family in families]
    starts = range(0, len(pictures), shard_rows)
    return [
        _Shard(
            folder / f"train-{number:05d}-of-{len(starts):05d}.parquet",
            split,
            seed,
            tuple(pictures[start : start + shard_rows]),
        )
        for number, start in enumerate(starts)
    ]


def _write_shard(shard: _Shard) -> int:
    """Draw and write one file; returns its number of rows."""
    row, features = (
        (train_row, TRAIN_FEATURES) if shard.split == "train" else (test_row, TEST_FEATURES)
    )
    rows = [row(family, index, shard.seed) for family, index in shard.pictures]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    aside = shard.path.with_suffix(".tmp")
    pq.write_table(table, aside, compression="zstd", row_group_size=256)
    os.replace(aside, shard.path)
    return len(rows)


def train_row(family: str, index: int, seed: int) -> dict[str, Any]:
    """One training row: the picture, all its questions as a LLaVA conversation, class and slot
    of its 144 patches.
    """
    drawn = draw("train", family, index, seed)
    name = f"train-{family}-{index:06d}"
    conversations: list[dict[str, str]] = []
    for number, question in enumerate(drawn.questions):
        text = f"<image>\n{question.text}" if number == 0 else question.text
        conversations.append({"from": "human", "value": text})
        conversations.append({"from": "gpt", "value": question.answer})
    return {
        "id": name,
        "family": family,
        "image": {"bytes": _png(drawn.image), "path": f"{name}.png"},
        "conversations": conversations,
        "patch_class": drawn.patch_class.tobytes(),
        "patch_slot": drawn.patch_slot.tobytes(),
    }


def test_row(family: str, index: int, seed: int) -> dict[str, Any]:
    """One test row: the picture and its one question."""
    drawn = draw("test", family, index, seed)
    name = f"test-{family}-{index:06d}"
    return {
        "id": name,
        "family": family,
        "image": {"bytes": _png(drawn.image), "path": f"{name}.png"},
        "question": drawn.test_question.text,
        "answer": drawn.test_question.answer,
        "cluster": name,
    }


def _png(image: Image.Image) -> bytes:
    assert (image.size, image.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def read_rows(files: Iterable[Path], columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of files written by `generate`, in order; images stay encoded."""
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


def content_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over what test rows say and show: ids, questions, answers and decoded pixels, not
    file encodings.
    """
    digest = hashlib.sha256()
    for row in rows:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            pixels = image.convert("RGB").tobytes()
        for part in (row["id"], row["question"], row["answer"]):
            digest.update(f"{part}\n".encode())
        digest.update(pixels)
    return digest.hexdigest()


def kind_of(family: str, question: str) -> QuestionKind:
    """The kind a question's text belongs to."""
    for kind in FAMILIES[family].kinds:
        if question in kind.texts():
            return kind
    raise ValueError(f"the family {family!r} asks no such question: {question!r}")


def majority_answers(family: str, count: int, seed: int) -> dict[str, str]:
    """The most frequent answer per kind of question over `count` training pictures (ties: first
    in the alphabet).
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(count):
        drawn = draw("train", family, index, seed)
        for question in (*drawn.questions, drawn.test_question):
            seen[question.kind][question.answer] += 1
    return {
        kind: min(answers, key=lambda answer: (-answers[answer], answer))
        for kind, answers in seen.items()
    }


def baselines(
    test_rows: Iterable[Mapping[str, Any]], seed: int, training_pictures: int = 100
) -> dict[str, Baselines]:
    """Chance and majority baseline of each family present in the rows (columns family, question,
    answer).

    Chance is the expected accuracy of an answer drawn uniformly from those possible for that kind
    of question; majority gives, for every kind, the answer most frequent in the first
    `training_pictures` training pictures of the seed.
    """
    asked: dict[str, list[Question]] = defaultdict(list)
    chances: dict[str, list[float]] = defaultdict(list)
    for row in test_rows:
        kind = kind_of(row["family"], row["question"])
        asked[row["family"]].append(Question(kind.name, row["question"], row["answer"]))
        chances[row["family"]].append(1 / len(kind.answers))
    found: dict[str, Baselines] = {}
    for family, questions in asked.items():
        constant = majority_answers(family, training_pictures, seed)
        hits = sum(question.answer == constant[question.kind] for question in questions)
        chance = sum(chances[family]) / len(questions)
        found[family] = Baselines(chance=round(chance, 6), majority=round(hits / len(questions), 6))
    return found
