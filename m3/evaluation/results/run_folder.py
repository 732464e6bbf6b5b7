"""The folder of a sweep.

The sweep writes it, the report reads it, nothing else passes between them.

    store/*.jsonl                 every answer and score, append-only           (store.py)
    results/MODEL/TASK@SCALE.json what lmms-eval returned, and the key of each document's answer in
    the store submissions/MODEL/TASK@SCALE/ files for a benchmark's server, as lmms-eval writes them
    (m3 submit collects them)
    tasks/TASK.yaml               what lmms-eval was told of its own tasks: where their data are
    cells.csv                     one row per model, task, scale and metric
    cost.csv                      a row per model and scale, and one per task of these: the mean, by formula, of all prompts
    latency.csv                   one row per model, scale and batch size: what was measured
    models.json, baselines.json, environment.json, examples/
    lmms_eval.log                 what the harness printed

SCALE is a budget, 36 or 36@48, or a choice of budgets: auto:0.95 (auto=0.95 in names of files), 144+1. MODEL is a
model's name, or MODEL+METHOD for a control (m3/evaluation/token_reduction/table.py): a control has rows of its own
everywhere, as if it were a model. `ModelRow.method` and `ModelRow.base` say which it is, and of which model. A task
that a server scores has no row in cells.csv, but files.

Files other than the store and the log are written aside and renamed.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

from m3.evaluation.cost.latency import Measured
from m3.evaluation.token_reduction.methods import OWN
from m3.files import lock, write_text
from m3.model.cost import Cost
from m3.nesting import Budget, make_tiling, read_budget
from m3.processing.scale_policy import is_budget, read_setting


@dataclass(frozen=True)
class CellRow:
    """One score: a line of cells.csv.

    Numbers are None where the cell failed or the harness gives none.
    """

    model: str
    task: str
    scale: int | str  # the budget: 36, or "36@48"; or a choice of budgets: "auto:0.95", "144+1"
    status: str  # ok | failed
    metric: str
    is_primary: bool  # the task's first metric: the one that tables and charts show
    value: float | None
    stderr: float | None  # clustered by image; None where the metric is no mean over documents
    n: int
    clusters: int
    visual_tokens: float | None  # mean per document
    text_tokens: float | None
    answer_tokens: float | None
    error: str
    confidence: float | None = None  # mean over the documents; None where an answer has none
    # as the task says; None: it does not (Summary.kinds)
    higher_is_better: bool | None = None
    # share (of one) | percent | points; "": not known (Scores.metric_units says what is then taken)
    unit: str = ""


@dataclass(frozen=True)
class CostRow(Cost):
    """Cost of a prompt, the mean over those that were asked of a task, or of all: a line of
    cost.csv.
    """

    model: str
    prompts: int  # how many were asked
    most_visual_tokens: int  # of any prompt
    most_first_token_flops: int
    task: str  # "": all tasks


@dataclass(frozen=True)
class LatencyRow(Measured):
    """Measured latency of a model: a line of latency.csv."""

    model: str

    @classmethod
    def of(cls, model: str, measured: Measured) -> "LatencyRow":
        return cls(model=model, **asdict(measured))


@dataclass(frozen=True)
class ModelRow:
    """A model of the sweep, in the order of the command line."""

    name: str
    path: str
    weights: str
    trained_scales: list[int | str]  # the ladder
    grid: list[int]  # (rows, columns), or the number of tokens alone
    nesting: str
    parameters: int
    method: str  # how visual tokens are chosen: a row of m3.evaluation.token_reduction.table
    base: str  # for a control, the name of the model it belongs to
    routers: int  # layers with experts; 0: a dense decoder
    tiling: dict[str, Any]  # Tiling.to_dict()
    encoder_side: int  # of the largest images that the encoder sees, in pixels

    def is_trained(self, scale: int | str) -> bool:
        """Tell whether the weights were trained at this budget; else it is plain pooling, or a
        control. A choice of budgets counts as trained.
        """
        if self.method != OWN:
            return False
        return not is_budget(scale) or self.budget(scale).setting in self.trained_scales

    def budget(self, scale: int | str) -> Budget:
        """What a budget of the sweep is to this model, which may call its resolution the largest."""
        budget = read_budget(scale)
        is_largest = budget.resolution == self.largest_resolution
        return Budget(budget.tokens) if is_largest else budget

    @property
    def largest_resolution(self) -> int:
        """The resolution in pixels of budgets that name none."""
        return make_tiling(self.tiling).largest_resolution(self.encoder_side)


@dataclass(frozen=True)
class Example:
    """A document shown in the report."""

    task: str
    doc_id: int
    question: str
    target: str
    image: str  # file under examples/
    size: list[int]  # (height, width) of the picture as it came


Row = TypeVar("Row", CellRow, CostRow, LatencyRow)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """A CSV file; None is an empty field."""
    csv_lines = [[row_field.name for row_field in fields(kind)]]
    csv_lines += [
        [
            "" if field_value is None else str(field_value)
            for field_value in asdict(table_row).values()
        ]
        for table_row in rows
    ]
    csv_text = io.StringIO()
    csv.writer(csv_text, lineterminator="\n").writerows(csv_lines)
    write_text(path, csv_text.getvalue())


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read the rows that `write_rows` wrote.

    Raises:
        ValueError: the file is missing or its columns are others.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is missing; `m3 report` takes the folder that `m3 sweep --out` wrote"
        )
    with path.open(encoding="utf-8", newline="") as open_file:
        reader = csv.DictReader(open_file)
        expected = [row_field.name for row_field in fields(kind)]
        if reader.fieldnames != expected:
            raise ValueError(
                f"{path} has columns {reader.fieldnames}, expected {expected}; run the sweep again"
            )
        try:
            return [
                kind(
                    **{
                        row_field.name: _parse(csv_row[row_field.name], row_field.type)
                        for row_field in fields(kind)
                    }
                )
                for csv_row in reader
            ]
        except (TypeError, ValueError) as error:  # a line with fewer fields, a word for a number
            raise ValueError(
                f"line {reader.line_num} of {path} cannot be read ({error}); run the sweep again"
            ) from error


def _parse(field_text: str, field_type: Any) -> Any:
    if field_type == int | str:
        return read_setting(field_text)
    if isinstance(field_type, UnionType):
        return None if field_text == "" else _parse(field_text, get_args(field_type)[0])
    return field_text == "True" if field_type is bool else field_type(field_text)


def alone_in(run: Path) -> AbstractContextManager[None]:
    """The lock of a run folder: tables of two sweeps in it would be mixed.

    Raises:
        ValueError: another sweep is writing to it.
    """
    return lock(
        run / ".lock", f"another sweep is writing to {run}; wait for it, or choose another --out"
    )


def result_path(run: Path, model: str, task: str, scale: int | str) -> Path:
    return run / "results" / model / f"{cell_name(task, scale)}.json"


def submission_folder(run: Path, model: str, task: str, scale: int | str) -> Path:
    return run / "submissions" / model / cell_name(task, scale)


def cell_name(task: str, scale: int | str) -> str:
    """`TASK@SCALE`; the colon of `auto:0.95` may not stand in a file's name everywhere."""
    return f"{task}@{scale}".replace(":", "=")


def read_cell_name(name: str) -> tuple[str, int | str]:
    """Task and setting of `TASK@SCALE`, where SCALE may be 36@48, 144+1 or auto=0.95."""
    task, *settings = re.split(r"@(?=(?:\d[\d@x+]*|auto(?:=[\w.]+)?)$)", name, maxsplit=1)
    if not settings:
        raise ValueError(f"{name!r} names no cell of a sweep: expected TASK@36 or TASK@36@48")
    return task, read_setting(settings[0].replace("=", ":"))


def read_keys(run: Path, model: str, task: str, scale: int | str) -> dict[int, str]:
    """doc_id -> key in the store, of one cell.

    Raises:
        ValueError: the file is missing, cut or foreign.
    """
    result_file = result_path(run, model, task, scale)
    result_content = read_json(result_file)
    answer_keys = result_content.get("m3_keys") if isinstance(result_content, dict) else None
    if not isinstance(answer_keys, dict) or not all(
        document_name.isdecimal() and isinstance(answer_key, str)
        for document_name, answer_key in answer_keys.items()
    ):
        raise ValueError(
            f"{result_file} has no m3_keys, from document to answer: `m3 sweep` did not write it; "
            "run the sweep again"
        )
    return {int(doc_id): answer_key for doc_id, answer_key in answer_keys.items()}


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote into a run folder.

    Raises:
        ValueError: the file is missing, or no JSON.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the run folder is not whole; copy all of it, or run "
            "the sweep again"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}): it was cut or changed; run the sweep again"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a file that holds one mapping."""
    json_content = read_json(path)
    if not isinstance(json_content, dict):
        raise ValueError(f"{path} holds no mapping: it was changed; run the sweep again")
    return json_content


Described = TypeVar("Described", ModelRow, Example)


def read_list(path: Path, kind: type[Described]) -> tuple[Described, ...]:
    """A JSON list of rows, as a run folder holds its models and examples.

    Raises:
        ValueError: the file is missing, no JSON, or its rows have other keys.
    """
    json_content, row_keys = read_json(path), [row_field.name for row_field in fields(kind)]
    for json_row in json_content if isinstance(json_content, list) else [None]:
        if not isinstance(json_row, dict) or set(json_row) != set(row_keys):
            raise ValueError(
                f"{path} is no list of rows with the keys {', '.join(row_keys)}: run the sweep "
                "again"
            )
    return tuple(kind(**json_row) for json_row in json_content)
