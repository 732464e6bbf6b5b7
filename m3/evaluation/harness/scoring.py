"""One cell of a sweep: a task at a budget, scored by the harness from answers in the store.

In: a `StoredModel` and a task. Out: rows of cells.csv; on the disk, what the harness returned, the
scores, and the files that a benchmark's server takes (submit.py).
"""

import argparse
import logging
import math
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager

from m3.evaluation.harness.stored_model import StoredModel
from m3.evaluation.harness.tasks import FOREIGN, LoadedTask
from m3.evaluation.results.foreign_numbers import as_number
from m3.evaluation.results.run_folder import CellRow, result_path, submission_folder, write_json
from m3.evaluation.results.samples import picture_clusters
from m3.evaluation.results.store import Answer
from m3.evaluation.statistics import Mean, clustered_mean
from m3.nesting import SCALE_OPTION

logger = logging.getLogger(__name__)

UNITS = (1.0, 100.0)
"""What a document's 1 may count in a task's mean: Video-MME averages rights and wrongs to per
cents.
"""
SUBMISSION = "submission"
"""The harness's metric of a task whose labels are hidden; it has a file instead of a value."""


def run_cell(
    model: StoredModel,
    name: str,
    loaded: LoadedTask,
    manager: TaskManager,
    limit: int | None,
    run: Path,
) -> list[CellRow]:
    """Scores one task at `model.budget`, in one process; a task that fails gives one row that says
    so.

    A task without a metric but its submission gives no row.
    """
    scale = model.budget.scale
    submission_files = submission_folder(run, name, loaded.name, scale)
    shutil.rmtree(submission_files, ignore_errors=True)  # names of an earlier run hold its time
    try:
        with as_one_process():
            harness_results = evaluator.simple_evaluate(
                model=model,
                model_args=f"model={name},weights={model.engine.weights},{SCALE_OPTION}={scale}",
                tasks=[loaded.task],
                task_manager=manager,
                limit=limit,
                batch_size=model.batch_size,
                bootstrap_iters=0,
                log_samples=True,
                cli_args=argparse.Namespace(
                    output_path=str(submission_files), process_with_media=False
                ),
                # some tasks guess where they find no answer: the order must not vary
                process_docs_parallel=1,
            )
        assert harness_results is not None
        return _rows(model, name, loaded, harness_results, run)
    # a task is foreign code: whatever it raises fails its cell, not the sweep
    except FOREIGN as error:
        logger.exception("%s failed on %s at %s tokens", name, loaded.name, scale)
        return [failed_row(name, loaded.name, scale, loaded.metric, error)]


def failed_row(
    name: str, task: str, scale: int | str, metric: str, error: BaseException
) -> CellRow:
    error_text = " ".join(_cause(error).split())
    return CellRow(
        name, task, scale, "failed", metric, True, None, None, 0, 0, None, None, None, error_text
    )


@contextmanager
def as_one_process() -> Iterator[None]:
    """The harness asks the environment whether it is one of several; scoring is done by one,
    from the merged store.
    """
    before = {
        variable_name: os.environ.pop(variable_name)
        for variable_name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if variable_name in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(before)


def _rows(
    model: StoredModel, name: str, loaded: LoadedTask, results: dict[str, Any], run: Path
) -> list[CellRow]:
    answers: dict[int, list[Answer]] = {}
    for request in loaded.requests:
        answers.setdefault(int(request.doc_id), []).append(model.store.answer(model.key(request)))
    scale = model.budget.scale
    samples = {
        int(sample["doc_id"]): sample for sample in reversed(results.pop("samples")[loaded.name])
    }
    answer_keys = {doc_id: of_doc[0].cell.key for doc_id, of_doc in sorted(answers.items())}
    write_json(result_path(run, name, loaded.name, scale), {**results, "m3_keys": answer_keys})
    metrics = reported(results["results"][loaded.name])
    metric_names = {str(metric["metric"]) for metric in loaded.task.config.metric_list}
    if not metrics and SUBMISSION not in metric_names:
        raise ValueError(
            f"the harness gave no number for any metric of {loaded.name}: "
            f"{', '.join(sorted(metric_names))}"
        )
    scores = {
        doc_id: per_document(sample, list(metrics)) for doc_id, sample in sorted(samples.items())
    }
    model.store.add_scores(
        {answer_keys[doc_id]: metric_values for doc_id, metric_values in scores.items()}
    )
    cell_rows = [
        _row(name, loaded, scale, metric, metric_value, scores, answers)
        for metric, metric_value in metrics.items()
    ]
    if loaded.metric not in metrics and SUBMISSION not in metric_names:
        no_score = ValueError(
            f"the harness gave no number for {loaded.metric}, the metric of {loaded.name} that "
            "tables show; it gave "
            f"{', '.join(f'{metric} {metric_value:.4g}' for metric, metric_value in metrics.items())}"
        )
        cell_rows.append(failed_row(name, loaded.name, scale, loaded.metric, no_score))
    return cell_rows


def reported(results: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> value of the harness's table, for the first filter of each metric; without what
    is no finite number.
    """
    reported_scores: dict[str, float] = {}
    for result_name, result_value in results.items():
        metric, comma, _ = result_name.partition(",")
        if not comma or "_stderr" in metric or metric in reported_scores:
            continue
        score_number = as_number(result_value)
        if score_number is not None and math.isfinite(score_number):
            reported_scores[metric] = score_number
        elif metric != SUBMISSION:
            logger.warning(
                "the harness gave %.200r for %s, which is no finite number: the metric has no row",
                result_value,
                result_name,
            )
    return reported_scores


def per_document(sample: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """The sample's scores: a metric is a number, or a mapping with a number under `score`."""
    scores = {}
    for metric in metrics:
        sample_value = sample.get(metric)
        score_number = as_number(
            sample_value.get("score") if isinstance(sample_value, dict) else sample_value
        )
        if score_number is not None and math.isfinite(score_number):
            scores[metric] = score_number
    return scores


def _row(
    name: str,
    loaded: LoadedTask,
    scale: int | str,
    metric: str,
    value: float,
    scores: Mapping[int, Mapping[str, float]],
    answers: Mapping[int, Sequence[Answer]],
) -> CellRow:
    documents = list(scores)
    ours = _mean(documents, metric, scores, answers)
    factors = (
        []
        if ours is None
        else [u for u in UNITS if math.isclose(u * ours.value, value, abs_tol=1e-6)]
    )
    factor = factors[0] if factors else None
    document_answers = [answers[doc_id][0] for doc_id in documents]
    sure = [answer.confidence for answer in document_answers if answer.confidence is not None]
    return CellRow(
        model=name,
        task=loaded.name,
        scale=scale,
        status="ok",
        metric=metric,
        is_primary=metric == loaded.metric,
        value=value,
        stderr=None if ours is None or factor is None else factor * ours.stderr,
        n=len(documents),
        clusters=len(set(picture_clusters(document_answers))),
        visual_tokens=sum(answer.visual_tokens for answer in document_answers)
        / len(document_answers),
        text_tokens=sum(answer.text_tokens for answer in document_answers) / len(document_answers),
        answer_tokens=sum(answer.answer_tokens for answer in document_answers)
        / len(document_answers),
        error="",
        confidence=sum(sure) / len(sure) if len(sure) == len(document_answers) else None,
        higher_is_better=loaded.higher_is_better(metric),
        unit=unit_of_scores(
            [
                document_scores[metric]
                for document_scores in scores.values()
                if metric in document_scores
            ],
            factors,
        ),
    )


def unit_of_scores(scores: Sequence[float], factors: Sequence[float]) -> str:
    """Unit of a metric whose value is the mean of documents' scores times one of `factors`; ""
    where these do not tell.

    Scores within [0, 1] averaged as they are make a share, times 100 per cents. Others count in per
    cents where the task averages marks up to 100 as they are, else in points. A mean of 0 tells
    nothing: it is the same in every unit.
    """
    if len(factors) != 1:
        return ""
    if all(0 <= score <= 1 for score in scores):
        return "share" if factors[0] == 1 else "percent"
    return "percent" if factors[0] == 1 and all(0 <= score <= 100 for score in scores) else "points"


def _mean(
    documents: Sequence[int],
    metric: str,
    scores: Mapping[int, Mapping[str, float]],
    answers: Mapping[int, Sequence[Answer]],
) -> Mean | None:
    """Clustered mean, where every document has a score for the metric."""
    document_values = [scores[doc_id][metric] for doc_id in documents if metric in scores[doc_id]]
    if len(document_values) != len(documents):
        if document_values:
            lost_documents = len(documents) - len(document_values)
            logger.warning(
                "%s: %d of %d documents have no finite number; it has no standard error",
                metric,
                lost_documents,
                len(documents),
            )
        return None
    return clustered_mean(
        document_values, picture_clusters([answers[doc_id][0] for doc_id in documents])
    )


def _cause(error: BaseException) -> str:
    """The error that the task raised, from under the harness's retries, and its line."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(cause).__name__}: {cause}{place}"
