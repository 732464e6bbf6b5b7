"""The model that a sweep hands to the harness: it answers from the store, and fills the store for all scales at once.

In: the harness's requests at one scale. Out: their answers. The first time documents are asked for, at whatever scale,
they are answered at every scale of the sweep while their images' features are at hand: chunk of documents -> tower
once -> each scale -> batches -> store. The later scales of the sweep then find everything in the store.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lmms_eval.api.instance import Instance
from PIL import Image
from tqdm import tqdm

from m3.evaluation.decoding import SCALE
from m3.evaluation.engine import Engine, Picture, Question, Reply
from m3.evaluation.lmms import CHUNK, EngineModel
from m3.evaluation.store import Answer, Cell, Json, Store, digest
from m3.evaluation.tasks import LoadedTask

RequestId = tuple[str, int, int]


class StoredModel(EngineModel):
    """An engine on one task, with the store and the scales of a sweep; `scale` says which the harness is served now."""

    def __init__(
        self,
        engine: Engine,
        scales: Sequence[int],
        batch_size: int,
        loaded: LoadedTask,
        store: Store,
        label: str,
    ) -> None:
        super().__init__(engine, scales[0], batch_size, loaded.is_simple)
        self.scales = tuple(scales)
        self.loaded = loaded
        self.store = store
        self._label = label
        self._screen = sys.stderr  # the sweep sends what the harness prints elsewhere
        self._keys: dict[RequestId, dict[int, str]] = {}

    def replies(self, requests: Sequence[Instance]) -> list[Reply]:
        """Answers at `self.scale`, after answering what the store lacks at any scale."""
        if any(identity(request) not in self._keys for request in requests):
            self._fill(requests)
        answers = [self.store.answer(self.key(request)) for request in requests]
        return [
            Reply(a.text, a.log_likelihood, a.visual_tokens, a.text_tokens, a.answer_tokens, a.seconds) for a in answers
        ]

    def key(self, request: Instance) -> str:
        """Key of the answer to a request at `self.scale`."""
        return self._keys[identity(request)][self.scale]

    def _fill(self, requests: Sequence[Instance]) -> None:
        total = len(requests) * len(self.scales)
        with tqdm(total=total, desc=self._label, unit="answer", file=self._screen, disable=self._rank != 0) as bar:
            for start in range(0, len(requests), CHUNK * self.batch_size):
                chunk = requests[start : start + CHUNK * self.batch_size]
                documents = [self.document(request) for request in chunk]
                questions = [self.question(request, doc) for request, doc in zip(chunk, documents, strict=True)]
                for scale in self.scales:
                    at_scale = [question.at(scale) for question in questions]
                    cells = [self._cell(*asked) for asked in zip(chunk, documents, at_scale, strict=True)]
                    for request, cell in zip(chunk, cells, strict=True):
                        self._keys.setdefault(identity(request), {})[scale] = cell.key
                    self._answer_missing(chunk, at_scale, cells, bar)

    def _answer_missing(
        self, requests: Sequence[Instance], questions: Sequence[Question], cells: Sequence[Cell], bar: tqdm
    ) -> None:
        missing = [cell.key not in self.store for cell in cells]
        bar.update(missing.count(False))
        if not any(missing):
            return
        for batch in self.engine.answer(questions, self.batch_size, missing):
            self.store.add_answers(
                [
                    Answer(
                        cell=cells[i],
                        task_name=requests[i].task_name,
                        doc_id=int(requests[i].doc_id),
                        images=tuple(picture.digest for picture in questions[i].pictures),
                        **asdict(reply),
                    )
                    for i, reply in batch
                    if missing[i]
                ]
            )
            bar.update(sum(missing[i] for i, _ in batch))

    def _cell(self, request: Instance, document: dict[str, Any], question: Question) -> Cell:
        _, task, split = request.arguments[-3:]
        if request.request_type != "loglikelihood" and SCALE in request.arguments[1 if self.is_simple else 2]:
            raise ValueError(
                f"task {task!r} fixes {SCALE} in its generation_kwargs; a sweep sets it, so remove it there"
            )
        pictures: list[Json] = [picture.digest for picture in question.pictures]
        settings: dict[str, Json] = {**asdict(question.decoding), "until": list(question.decoding.until)}
        return Cell(
            weights=self.engine.weights,
            task=digest([self.loaded.digest, settings]),
            dataset=digest([task, split, len(self.task_dict[task][split])]),
            document=digest({name: fingerprint(value) for name, value in document.items()}),
            prompt=digest([question.text, pictures, question.continuation]),
            scale=question.scale,
            method=self.engine.model.config.nesting.kind,
        )


def identity(request: Instance) -> RequestId:
    """Which request of a task it is; the same at every scale."""
    return request.task_name, int(request.doc_id), request.idx


def fingerprint(value: object) -> Json:
    """A JSON value that changes when a document's value does: images and bytes by digest, the rest as it prints."""
    if isinstance(value, Image.Image):
        return Picture.of(value).digest
    if isinstance(value, bytes):
        return digest(value)
    if isinstance(value, dict):
        return {str(name): fingerprint(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
