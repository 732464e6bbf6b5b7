"""Scores document by document: what the oracle, paired differences and calibration are made of.

In: a run folder's keys and its store. Out: `Samples`, one model on one task.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from m3.evaluation.results.run_folder import read_keys
from m3.evaluation.results.store import Answer, Store


@dataclass(frozen=True)
class Samples:
    """One model on one task: a row per document, a column per budget (ascending)."""

    scales: tuple[int | str, ...]
    doc_ids: tuple[int, ...]
    documents: tuple[str, ...]  # digests of the documents: equal in two runs where the data are
    images: tuple[int, ...]  # the clusters (`picture_clusters`)
    scores: Float[np.ndarray, "n k"]
    tokens: Float[np.ndarray, "n k"]  # visual tokens of the prompt, as counted
    confidences: Float[np.ndarray, "n k"]  # nan where none was recorded

    def at(self, scale: int | str) -> Float[np.ndarray, " n"]:
        return self.scores[:, self.scales.index(scale)]


def picture_clusters(answers: Sequence[Answer]) -> list[int]:
    """A number per document: alike where documents share a picture (by content digest), or a chain
    of such documents does.

    Documents are not independent within such a component. One without a picture stands for itself.
    """
    parents: dict[str, str] = {}

    def root(picture_name: str) -> str:
        parents.setdefault(picture_name, picture_name)
        while parents[picture_name] != picture_name:
            parents[picture_name] = picture_name = parents[parents[picture_name]]
        return picture_name

    picture_names = [answer.images or (f"text {answer.cell.document}",) for answer in answers]
    for first_name, *other_names in picture_names:
        for other_name in other_names:
            parents[root(other_name)] = root(first_name)
    cluster_numbers: dict[str, int] = {}
    return [
        cluster_numbers.setdefault(root(first_name), len(cluster_numbers))
        for first_name, *_ in picture_names
    ]


def read_samples(
    run: Path, store: Store, model: str, task: str, scales: Sequence[int | str], metric: str
) -> Samples | None:
    """The documents that every scale has; None where some document has no score of its own for
    the metric.
    """
    scale_keys = [read_keys(run, model, task, scale) for scale in scales]
    doc_ids = sorted(set.intersection(*(set(of_scale) for of_scale in scale_keys)))
    scores = [
        [store.scores(of_scale[doc_id]).get(metric) for of_scale in scale_keys]
        for doc_id in doc_ids
    ]
    if not doc_ids or any(
        score is None or not math.isfinite(score) for score_row in scores for score in score_row
    ):
        return None
    answers = [[store.answer(of_scale[doc_id]) for of_scale in scale_keys] for doc_id in doc_ids]
    return Samples(
        scales=tuple(scales),
        doc_ids=tuple(doc_ids),
        documents=tuple(score_row[0].cell.document for score_row in answers),
        images=tuple(picture_clusters([score_row[0] for score_row in answers])),
        scores=np.asarray(scores, dtype=np.float64),
        tokens=np.asarray(
            [[answer.visual_tokens for answer in score_row] for score_row in answers],
            dtype=np.float64,
        ),
        confidences=np.asarray(
            [[answer.confidence for answer in score_row] for score_row in answers], dtype=np.float64
        ),
    )
