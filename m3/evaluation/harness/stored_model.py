"""The model that a sweep hands to the harness: it answers from the store, and fills the store for
all budgets at once.

In: the harness's requests at one budget (method and scale). Out: their answers. The first time
documents are asked for, at whatever budget, they are answered at every budget of the sweep while
their images' features are at hand: chunk of documents
-> tower once -> rows of all budgets together, batched by length -> store. The later cells then find everything in the store.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from PIL import Image
from tqdm import tqdm

from m3.digest import Json, digest, digest_files
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.expert_routing import is_recorded
from m3.evaluation.answering.questions import Picture, Question, Reply
from m3.evaluation.harness.frames import FRAMES
from m3.evaluation.harness.lmms_model import CHUNK, EngineModel
from m3.evaluation.harness.tasks import FOREIGN, LoadedTask
from m3.evaluation.results.store import Answer, Cell, Store
from m3.evaluation.token_reduction import table
from m3.evaluation.token_reduction.methods import OWN, stored_name
from m3.nesting import SCALE_OPTION

logger = logging.getLogger(__name__)

RequestId = tuple[str, int, int]


@dataclass(frozen=True)
class MethodBudget:
    """A budget (36 visual tokens per image or tile, or "36@48") or a choice of budgets ("auto"), and
    the method that chooses the tokens (a row of m3.evaluation.token_reduction.table).
    """

    scale: int | str
    method: str = OWN


class StoredModel(EngineModel):
    """An engine on one task, with the store and the budgets of a sweep; `budget` says which the
    harness is served now.
    """

    def __init__(
        self,
        engine: Engine,
        budgets: Sequence[MethodBudget],
        batch_size: int,
        loaded: LoadedTask,
        store: Store,
        label: str,
        frames: str | int = FRAMES,
        limit: int | None = None,
    ) -> None:
        """`limit`: only the first so many documents of the task will be asked for."""
        super().__init__(engine, budgets[0].scale, batch_size, loaded.is_simple, frames)
        self.budgets = tuple(budgets)
        self.budget = budgets[0]
        self.loaded = loaded
        self.store = store
        self.limit = limit
        self._label = label
        self._screen = sys.stderr  # the sweep sends what the harness prints elsewhere
        self._keys: dict[RequestId, dict[MethodBudget, str]] = {}
        self._failures: dict[MethodBudget, BaseException] = {}

    def serve(self, budget: MethodBudget) -> None:
        """The next requests of the harness are answered at this budget."""
        self.budget, self.scale = budget, budget.scale

    def replies(self, requests: Sequence[Instance]) -> list[Reply]:
        """Answers at `self.budget`, after answering what the store lacks at any budget.

        Raises:
            Exception: what went wrong when this budget was answered, whichever budget was served
                then.
        """
        if any(identity(request) not in self._keys for request in requests):
            self.fill(requests)
        if self.budget in self._failures:
            raise self._failures[self.budget]
        answers = [self.store.answer(self.key(request)) for request in requests]
        return [
            Reply(
                a.text,
                a.log_likelihood,
                a.visual_tokens,
                a.text_tokens,
                a.answer_tokens,
                a.seconds,
                a.confidence,
            )
            for a in answers
        ]

    def key(self, request: Instance) -> str:
        """Key of the answer to a request at `self.budget`."""
        return self._keys[identity(request)][self.budget]

    def answer_share(self, everything: bool = False) -> None:
        """Answers the documents of this process, of the several that torchrun started; the harness
        shares them out.

        `everything`: those of all processes.
        """
        task = self.loaded.task
        self.task_dict[self.loaded.name] = task.dataset
        rank, processes = (0, 1) if everything else (self._rank, self._world_size)
        task.build_all_requests(limit=self.limit, rank=rank, world_size=processes)
        self.fill(self.loaded.requests)

    def fill(self, requests: Sequence[Instance]) -> None:
        """Answers what the store lacks.

        A budget that fails is left out from then on; an unreadable document fails all.
        """
        total_answers = len(requests) * len(self.budgets)
        with tqdm(
            total=total_answers,
            desc=self._label,
            unit="answer",
            file=self._screen,
            disable=self._rank != 0,
        ) as bar:
            for chunk_start in range(0, len(requests), CHUNK * self.batch_size):
                chunk = requests[chunk_start : chunk_start + CHUNK * self.batch_size]
                live = [budget for budget in self.budgets if budget not in self._failures]
                if not live:
                    return
                try:
                    documents = [self.document(request) for request in chunk]
                    questions = [
                        self.question(request, doc)
                        for request, doc in zip(chunk, documents, strict=True)
                    ]
                    cells = [
                        self._cell(*chunk_question)
                        for chunk_question in zip(chunk, documents, questions, strict=True)
                    ]
                except FOREIGN as error:  # foreign code and foreign data
                    logger.exception("%s: a document cannot be asked", self._label)
                    self._failures |= dict.fromkeys(live, error)
                    return
                self._answer_or_fail(chunk, questions, cells, live, bar)

    def _answer_or_fail(
        self,
        requests: Sequence[Instance],
        questions: Sequence[Question],
        cells: Sequence[Cell],
        budgets: Sequence[MethodBudget],
        bar: tqdm,
    ) -> None:
        """All budgets together; where that fails, each alone, so that one of them does not take
        the others with it.
        """
        try:
            self._answer(requests, questions, cells, budgets, bar)
        # a method that this model cannot do, memory that does not suffice, a bug
        except Exception as error:
            logger.exception("%s: %d budgets together failed", self._label, len(budgets))
            if len(budgets) == 1:
                self._failures[budgets[0]] = error
                return
            for budget in budgets:
                self._answer_or_fail(requests, questions, cells, [budget], bar)

    def _answer(
        self,
        requests: Sequence[Instance],
        questions: Sequence[Question],
        cells: Sequence[Cell],
        budgets: Sequence[MethodBudget],
        bar: tqdm,
    ) -> None:
        """The plan of the batches depends on questions and budgets alone, not on what the store
        has: resuming changes nothing.
        """
        budget_questions = [(budget, i) for budget in budgets for i in range(len(questions))]
        documents = min(len(self.loaded.task.eval_docs), self.limit or sys.maxsize)
        is_routed = [is_recorded(int(request.doc_id), documents) for request in requests]
        asked_questions = [
            questions[i].at(budget.scale, budget.method, is_routed[i])
            for budget, i in budget_questions
        ]
        settled = self.engine.settle(asked_questions, self.batch_size)
        # a choice falls on a budget that is asked by itself as well, as a rule: one answer for both
        distinct: dict[str, tuple[Cell, int, Question]] = {}
        for (budget, i), question in zip(budget_questions, settled, strict=True):
            cell = self._at(cells[i], replace(budget, scale=question.scale))
            self._keys.setdefault(identity(requests[i]), {})[budget] = cell.key
            distinct.setdefault(cell.key, (cell, i, question))
        is_missing = [key not in self.store for key in distinct]
        bar.update(len(budget_questions) - sum(is_missing))
        if not any(is_missing):
            return
        wanted = list(distinct.values())
        at_budget = [question for _, _, question in wanted]
        for batch in self.engine.answer(at_budget, self.batch_size, is_missing):
            new_replies = [(position, reply) for position, reply in batch if is_missing[position]]
            answers = []
            for position, reply in new_replies:
                cell, i, question = wanted[position]
                request, doc_id = requests[i], int(requests[i].doc_id)
                images = tuple(picture.digest for picture in question.pictures)
                picture_sizes = tuple(
                    (picture.image.height, picture.image.width) for picture in question.pictures
                )
                answers.append(
                    Answer(
                        cell,
                        request.task_name,
                        doc_id,
                        images=images,
                        sizes=picture_sizes,
                        **asdict(reply),
                    )
                )
            self.store.add_answers(answers)
            bar.update(len(new_replies))

    def _at(self, cell: Cell, budget: MethodBudget) -> Cell:
        method = stored_name(budget.method, self.engine.model.config.nesting.kind)
        code = "" if budget.method == OWN else controls_code()
        return replace(cell, scale=budget.scale, method=method, code=code)

    def _cell(self, request: Instance, document: dict[str, Any], question: Question) -> Cell:
        _, task, split = request.arguments[-3:]
        if (
            request.request_type != "loglikelihood"
            and SCALE_OPTION in request.arguments[1 if self.is_simple else 2]
        ):
            raise ValueError(
                f"task {task!r} fixes {SCALE_OPTION} in its generation_kwargs; a sweep sets it, so remove "
                "it there"
            )
        pictures: list[Json] = [picture.digest for picture in question.pictures]
        settings: dict[str, Json] = {
            **asdict(question.decoding),
            "until": list(question.decoding.until),
        }
        return Cell(
            weights=self.engine.weights,
            task=digest([self.loaded.digest, settings]),
            dataset=digest([task, split, len(self.task_dict[task][split])]),
            document=digest(
                {
                    field_name: fingerprint(field_value)
                    for field_name, field_value in document.items()
                }
            ),
            prompt=digest([question.text, pictures, question.continuation]),
            scale=question.scale,
            method=self.engine.model.config.nesting.kind,
        )


def identity(request: Instance) -> RequestId:
    """Identity of a request of a task; the same at every scale."""
    return request.task_name, int(request.doc_id), request.idx


def fingerprint(value: object) -> Json:
    """A JSON value that changes when a document's value does: images and bytes by digest, the
    rest as it prints.
    """
    if isinstance(value, Image.Image):
        return Picture.of(value).digest
    if isinstance(value, bytes):
        return digest(value)
    if isinstance(value, dict):
        return {str(item_name): fingerprint(item_value) for item_name, item_value in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(item_value) for item_value in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@cache
def controls_code() -> str:
    """Digest of the code of all controls: answers of a changed one are other answers."""
    folder = Path(table.__file__).parent
    return digest_files(folder.glob("*.py"), folder)
