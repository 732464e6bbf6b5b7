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

from m3.data.sample import IMAGE_MARK
from m3.data.synthetic import chart, count, digits, document, position, scene
from m3.data.synthetic.drawing import DrawnPicture, Question, QuestionKind, Split
from m3.data.synthetic.vocabulary import IMAGE_SIZE
from m3.files import atomic_file

SHARD_ROWS: Final = 1024


@dataclass(frozen=True)
class Family:
    """One family of pictures: how one is drawn, and the kinds of question it carries."""

    draw_picture: Callable[[Random, Split], DrawnPicture]
    kinds: tuple[QuestionKind, ...]


FAMILIES: Final[dict[str, Family]] = {
    "scene": Family(scene.draw_picture, scene.KINDS),
    "position": Family(position.draw_picture, position.KINDS),
    "count": Family(count.draw_picture, count.KINDS),
    "digits": Family(digits.draw_picture, digits.KINDS),
    "chart": Family(chart.draw_picture, chart.KINDS),
    "document": Family(document.draw_picture, document.KINDS),
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
    """Accuracy without eyes: of uniform guessing, and of the best constant answer per kind."""

    chance: float
    majority: float


@dataclass(frozen=True)
class _Shard:
    """One output file, and the pictures (family, index) that it holds, in order."""

    path: Path
    split: Split
    seed: int
    pictures: tuple[tuple[str, int], ...]


def draw_picture(split: Split, family: str, index: int, seed: int) -> DrawnPicture:
    """Picture `index` of a family.

    The split is part of the seed, so train and test share no picture.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family].draw_picture(Random(f"{seed}/{split}/{family}/{index}"), split)


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
            f"expected at least 1 picture per family and 1 worker, got {count_per_family} and "
            f"{workers}"
        )
    split_folder = Path(out_dir) / split
    shards = _plan_shards(split, count_per_family, seed, split_folder, families, shard_rows)
    split_folder.mkdir(parents=True, exist_ok=True)
    shard_paths = {shard.path for shard in shards}
    for old_shard in split_folder.glob("*.parquet"):
        if old_shard not in shard_paths:
            old_shard.unlink()
    with tqdm(
        total=count_per_family * len(families),
        desc=f"drawing {split}",
        unit="img",
        disable=not progress,
    ) as progress_bar:
        if workers == 1:
            for shard in shards:
                progress_bar.update(_write_shard(shard))
        else:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                for num_rows in pool.imap_unordered(_write_shard, shards):
                    progress_bar.update(num_rows)
    return [shard.path for shard in shards]


def _plan_shards(
    split: Split,
    count_per_family: int,
    seed: int,
    split_folder: Path,
    families: Sequence[str],
    shard_rows: int,
) -> list[_Shard]:
    if split == "test":
        return [
            _Shard(
                split_folder / f"{family}.parquet",
                split,
                seed,
                tuple((family, index) for index in range(count_per_family)),
            )
            for family in families
        ]
    if split != "train":
        raise ValueError(f"unknown split {split!r}: expected train or test")
    pictures = [(family, index) for index in range(count_per_family) for family in families]
    shard_starts = range(0, len(pictures), shard_rows)
    return [
        _Shard(
            split_folder / f"train-{shard_number:05d}-of-{len(shard_starts):05d}.parquet",
            split,
            seed,
            tuple(pictures[first_picture : first_picture + shard_rows]),
        )
        for shard_number, first_picture in enumerate(shard_starts)
    ]


def _write_shard(shard: _Shard) -> int:
    """Draw and write one file; returns its number of rows."""
    make_row, features = (
        (train_row, TRAIN_FEATURES) if shard.split == "train" else (test_row, TEST_FEATURES)
    )
    shard_rows = [make_row(family, index, shard.seed) for family, index in shard.pictures]
    arrow_table = pa.Table.from_pylist(shard_rows, schema=features.arrow_schema)
    with atomic_file(shard.path) as temporary_path:
        pq.write_table(arrow_table, temporary_path, compression="zstd", row_group_size=256)
    return len(shard_rows)


def train_row(family: str, index: int, seed: int) -> dict[str, Any]:
    """One training row: picture, questions as a LLaVA conversation, labels of its 144 patches."""
    picture = draw_picture("train", family, index, seed)
    picture_name = f"train-{family}-{index:06d}"
    conversations: list[dict[str, str]] = []
    for question_number, question in enumerate(picture.questions):
        text = f"{IMAGE_MARK}\n{question.text}" if question_number == 0 else question.text
        conversations.append({"from": "human", "value": text})
        conversations.append({"from": "gpt", "value": question.answer})
    return {
        "id": picture_name,
        "family": family,
        "image": {"bytes": _encode_png(picture.image), "path": f"{picture_name}.png"},
        "conversations": conversations,
        "patch_class": picture.patch_class.tobytes(),
        "patch_slot": picture.patch_slot.tobytes(),
    }


def test_row(family: str, index: int, seed: int) -> dict[str, Any]:
    """One test row: the picture and its one question."""
    picture = draw_picture("test", family, index, seed)
    picture_name = f"test-{family}-{index:06d}"
    return {
        "id": picture_name,
        "family": family,
        "image": {"bytes": _encode_png(picture.image), "path": f"{picture_name}.png"},
        "question": picture.test_question.text,
        "answer": picture.test_question.answer,
        "cluster": picture_name,
    }


def _encode_png(image: Image.Image) -> bytes:
    assert (image.size, image.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def read_rows(files: Iterable[Path], columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of files written by `generate`, in order; images stay encoded."""
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


def content_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of test rows: ids, questions, answers and decoded pixels, not file encodings."""
    digest = hashlib.sha256()
    for row in rows:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            image_pixels = image.convert("RGB").tobytes()
        for text in (row["id"], row["question"], row["answer"]):
            digest.update(f"{text}\n".encode())
        digest.update(image_pixels)
    return digest.hexdigest()


def question_kind(family: str, question: str) -> QuestionKind:
    """The kind that a question's text belongs to."""
    for kind in FAMILIES[family].kinds:
        if question in kind.texts():
            return kind
    raise ValueError(f"the family {family!r} asks no such question: {question!r}")


def majority_answers(family: str, num_pictures: int, seed: int) -> dict[str, str]:
    """The most frequent answer per kind of question in the first `num_pictures` of training.

    Of equally frequent ones, the first in the alphabet.
    """
    answer_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(num_pictures):
        picture = draw_picture("train", family, index, seed)
        for question in (*picture.questions, picture.test_question):
            answer_counts[question.kind][question.answer] += 1
    return {
        kind: min(answers, key=lambda answer: (-answers[answer], answer))
        for kind, answers in answer_counts.items()
    }


def baselines(
    test_rows: Iterable[Mapping[str, Any]], seed: int, training_pictures: int = 100
) -> dict[str, Baselines]:
    """Chance and majority baseline of each family in the rows (family, question, answer).

    Chance is the expected accuracy of an answer drawn uniformly from those possible for that kind
    of question; majority gives, for every kind, the answer most frequent in the first
    `training_pictures` training pictures of the seed.
    """
    family_questions: dict[str, list[Question]] = defaultdict(list)
    chances: dict[str, list[float]] = defaultdict(list)
    for row in test_rows:
        kind = question_kind(row["family"], row["question"])
        family_questions[row["family"]].append(Question(kind.name, row["question"], row["answer"]))
        chances[row["family"]].append(1 / len(kind.answers))
    family_baselines: dict[str, Baselines] = {}
    for family, questions in family_questions.items():
        best_constants = majority_answers(family, training_pictures, seed)
        num_hits = sum(question.answer == best_constants[question.kind] for question in questions)
        chance = sum(chances[family]) / len(questions)
        family_baselines[family] = Baselines(
            chance=round(chance, 6), majority=round(num_hits / len(questions), 6)
        )
    return family_baselines
