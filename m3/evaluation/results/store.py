"""The append-only store of a sweep: one line per answer, one line per score, never rewritten.

In: answers as the model gives them, scores as the harness computes them. Out: the same, in this
    process or a later one.

Each writer process appends to its own file, so processes never share a file. A batch of lines is
flushed and fsync'd as one, hence a killed run loses at most the batch it was in; a last line that
was cut by the kill is ignored.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TextIO

from m3.digest import digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """Everything that an answer depends on, each by digest; `key` is the identity of the answer."""

    weights: str  # every file of the model folder, and the number format it runs in
    task: str  # the task's YAML, its code and the generation settings without the scale
    dataset: str  # path, name, split and number of rows
    document: str  # the whole document, pixels included
    prompt: str  # the text after the chat template and the images, in order
    scale: (
        int | str
    )  # the budget: visual tokens per image (36), or tokens at a resolution ("36@48")
    method: str  # how the visual tokens were made: the kind of nesting
    code: str = ""  # of a control: the files that choose its tokens

    @cached_property
    def key(self) -> str:
        return digest(
            {cell_field.name: getattr(self, cell_field.name) for cell_field in fields(self)}
        )


@dataclass(frozen=True)
class Answer:
    """One answer of one model to one document at one scale, and what it took."""

    cell: Cell
    task_name: str
    doc_id: int
    text: str  # generated text, or "" for a log-likelihood request
    # (sum of log-probabilities, whether greedy decoding gives it)
    log_likelihood: tuple[float, bool] | None
    visual_tokens: int  # real count over all images of the prompt
    text_tokens: int  # prompt tokens that are not visual
    answer_tokens: int  # generated or scored tokens
    seconds: float  # the batch's wall clock time divided by its number of answers
    images: tuple[str, ...]  # digests of the images: the clusters of the standard errors
    # of a generated answer (confidence.py); None: scored, or by beams
    confidence: float | None = None
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) of each picture
    # experts that the prompt's tokens chose, of some documents (routing.py)
    routing: str | None = None


class Store:
    """All answers and scores under `folder` (`*.jsonl`), and an own file for what this process
    adds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._answers: dict[str, Answer] = {}
        self._scores: dict[str, dict[str, float]] = {}
        self._file: TextIO | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Reads what is on the disk, that of other processes included."""
        for record_file in sorted(self.folder.glob("*.jsonl")):
            for record in read_records(record_file):
                self._remember(record)

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def answer(self, key: str) -> Answer:
        """The answer of this key.

        Raises:
            ValueError: the store has none; a part of it is missing, or it is another run's.
        """
        if key not in self._answers:
            raise ValueError(
                f"{self.folder} has no answer {key}: a part of the store is missing, or it is "
                "another run's"
            )
        return self._answers[key]

    def scores(self, key: str) -> dict[str, float]:
        """Metric -> score of the answer; empty where it was not scored yet."""
        return self._scores.get(key, {})

    def add_answers(self, answers: Sequence[Answer]) -> None:
        """Append answers that are not in the store; on return they are on the disk."""
        new_answers = {
            answer.cell.key: answer for answer in answers if answer.cell.key not in self._answers
        }
        self._append(
            [
                {"kind": "answer", "key": key, **asdict(answer)}
                for key, answer in new_answers.items()
            ]
        )

    def add_scores(self, scores: dict[str, dict[str, float]]) -> None:
        """Append the scores of answers (key -> metric -> score) that are new or differ from
        those in the store.
        """
        new_scores = {
            key: score_values
            for key, score_values in scores.items()
            if self._scores.get(key) != score_values
        }
        self._append(
            [
                {"kind": "score", "key": key, "scores": dict(score_values)}
                for key, score_values in new_scores.items()
            ]
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, records: list[dict]) -> None:
        if not records:
            return
        if self._file is None:
            file_name = (
                f"{time.strftime('%Y%m%dT%H%M%S')}-{socket.gethostname()}-{os.getpid()}.jsonl"
            )
            self._file = (self.folder / file_name).open("a", encoding="utf-8")
        self._file.write(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        for record in records:
            self._remember(record)

    def _remember(self, record: dict) -> None:
        if record["kind"] == "score":
            self._scores[record["key"]] = record["scores"]
        else:
            self._answers[record["key"]] = _decode_answer(record)


def _decode_answer(record: dict) -> Answer:
    field_values = {answer_field.name: record[answer_field.name] for answer_field in fields(Answer)}
    field_values["cell"] = Cell(**field_values["cell"])
    field_values["images"] = tuple(field_values["images"])
    field_values["sizes"] = tuple((height, width) for height, width in field_values["sizes"])
    if field_values["log_likelihood"] is not None:
        field_values["log_likelihood"] = tuple(field_values["log_likelihood"])
    return Answer(**field_values)


def read_records(path: Path) -> list[dict]:
    """The records of one file.

    A last line without its line end was cut by a kill and is left out.
    """
    *whole_lines, torn_line = path.read_bytes().split(b"\n")
    if torn_line:
        logger.warning("%s ends in a cut line of %d bytes; it is ignored", path, len(torn_line))
    records = []
    for line_number, record_line in enumerate(whole_lines, start=1):
        try:
            records.append(json.loads(record_line))
        except ValueError as error:
            raise ValueError(
                f"line {line_number} of {path} is not a record ({error}); the store is append-only "
                "and only its last line may be cut. Remove this file to compute its answers again"
            ) from error
    return records
