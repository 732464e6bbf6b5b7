"""One model, many requests.

In: `Request`s from any thread or event loop. Out: for each its pieces and its end, as they come
    (m3/serving/engine/requests.py).

A request is accepted or refused at once (the house has a fixed number of places); decoded and
tokenised on one of a few threads (m3/serving/engine/preparation.py); then it waits for the model's
own thread, which repeats, as long as there is work:

    every answer in the batch goes on by one token; who waits and fits joins the batch: what was not
    seen yet at the resolution of its budget passes the tower, prompts are read, each at its own
    scale; answers that ended, ran out of time or whose client left leave the batch; of requests whose
    budgets the model's router chooses, the cheapest views pass the tower, and they go back to the
    few threads with what it chose, to wait as all others do

transformers' own continuous batching takes token ids alone (5.23: `add_request(input_ids)`), no
images and no embeddings, so the batch is kept here (m3/serving/engine/batch.py).
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor

from m3.inference.image_features import TOWER_BATCH
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.engine.active_request import Emit, Job
from m3.serving.engine.batch import merges
from m3.serving.engine.feature_cache import Features
from m3.serving.engine.metrics import Metrics, Pace
from m3.serving.engine.preparation import Draft, Preparation
from m3.serving.engine.requests import Busy, End, Event, Finished, Refused, Request
from m3.serving.engine.scheduler import Scheduler
from m3.serving.settings import Settings

PATIENCE_SECONDS = 30.0
"""Beyond the time of a request, for a long step of the model that is under way."""
logger = logging.getLogger(__name__)


class Engine:
    """Starts its threads when made; `close` ends them."""

    def __init__(
        self, model: M3ForConditionalGeneration, processor: M3Processor, settings: Settings
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.metrics = Metrics()
        self.places = settings.queue.running + settings.queue.waiting
        self._rows = settings.queue.running if merges(model) else 1
        features = Features(model, settings.cache_bytes, self.metrics)
        self._preparation = Preparation(model, processor, features, settings.limits)
        self._scheduler = Scheduler(model, processor, features, self.metrics)
        self._change = threading.Condition()  # guards the five below
        self._accepted: set[Job] = set()
        self._undecided: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._closing = False
        self._pace = Pace()
        self._preparers = ThreadPoolExecutor(settings.queue.preparers, "m3-prepare")
        self._thread = threading.Thread(target=self._run, name="m3-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False once it was closed, or where the model's thread ended by an error."""
        return self._thread.is_alive()

    # ------------------------------------------------------------------ asking
    def submit(self, request: Request, emit: Emit) -> Job:
        """Accepts a request; what happens to it is told to `emit`, from other threads.

        The job is that of its first answer; cancelled, it takes the others with it.

        Raises:
            Refused: more answers than a request may ask for.
            Busy: no place is free, or the engine is closing.
        """
        self._check_count(request.choice_count)
        seconds = self.settings.limits.seconds
        job = Job(request, emit, seconds)
        for _ in range(request.choice_count - 1):
            Job(request, emit, seconds, job)
        limit = self.settings.queue.held_bytes
        with self._change:
            if self._closing or not self.is_alive:
                raise Busy(
                    "the server is shutting down",
                    self.settings.queue.retry_after_seconds,
                    status=503,
                )
            if len(self._accepted) + len(job.group) > self.places:
                self.metrics.requests.labels("overloaded").inc()
                raise Busy(
                    f"the server has {self.places} requests under way and takes no more; try again "
                    "later",
                    self._wait_seconds(),
                )
            if job.bytes + sum(accepted_job.bytes for accepted_job in self._accepted) > limit:
                self.metrics.requests.labels("overloaded").inc()
                raise Busy(
                    f"the server holds as many images and videos as it can ({limit:,} bytes); try "
                    "again later",
                    self._wait_seconds(),
                )
            self._accepted.update(job.group)
        self.metrics.accepted.inc(len(job.group))
        self._preparers.submit(self._prepare, job).add_done_callback(_tell)
        return job

    def _check_count(self, choice_count: int) -> None:
        limit = min(self.settings.limits.choices, self.places)
        if not 1 <= choice_count <= limit:
            raise Refused(
                f"n: the request asks for {choice_count:,} answers, more than this server's limit of "
                f"{limit:,}",
                param="n",
            )

    def _wait_seconds(self) -> int:
        """Until half of those who are here will have ended: then there is room for those who come
        back.
        """
        limits, waiting = self.settings, len(self._accepted) / 2
        seconds = math.ceil(self._pace.seconds(math.ceil(waiting), time.monotonic()))
        return min(max(seconds, limits.queue.retry_after_seconds), math.ceil(limits.limits.seconds))

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """Pieces, then `Finished`; of all its answers, as they come.

        Leaving the loop early, or cancelling the task, cancels the request.

        Raises:
            Refused: before the first piece, or in the middle where the engine fails.
        """
        events: asyncio.Queue[Event | Refused] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        job = self.submit(request, lambda event: _put(loop, events, event))
        open_answers = request.choice_count
        try:
            while open_answers:
                event = await self._next(job, events)
                if isinstance(event, Refused):
                    raise event
                open_answers -= isinstance(event, Finished)
                yield event
        finally:
            job.cancelled = True

    async def _next(self, job: Job, events: "asyncio.Queue[Event | Refused]") -> Event | Refused:
        """Nobody waits for ever, not even for a decoder that does not come to an end."""
        try:
            return await asyncio.wait_for(
                events.get(), job.deadline + PATIENCE_SECONDS - time.monotonic()
            )
        except TimeoutError:
            seconds = self.settings.limits.seconds
            return Refused(
                f"the request could not be read within {seconds:g} s",
                408,
                "request_timeout",
                job.request.field_path,
            )

    def answer(self, request: Request) -> Finished:
        """The whole answer, for callers without an event loop. Errors as in `stream`."""
        (finished,) = self.answers(request)
        return finished

    def answers(self, request: Request) -> list[Finished]:
        """All answers of a request, in their order."""
        events: queue.SimpleQueue[Event | Refused] = queue.SimpleQueue()
        self.submit(request, events.put)
        finished: list[Finished] = []
        while len(finished) < request.choice_count:
            event = events.get()
            if isinstance(event, Refused):
                raise event
            if isinstance(event, Finished):
                finished.append(event)
        return sorted(finished, key=lambda answer: answer.index)

    def close(self) -> None:
        """Accepts nothing more, finishes what was accepted, ends the threads."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._thread.join()  # before its helpers: it sends them what its router chose
        self._preparers.shutdown()

    # ------------------------------------------------------------------ beside the model
    def _prepare(self, job: Job, closed_draft: Draft | None = None) -> None:
        """On a preparing thread: every mistake of a client shows here.

        `closed_draft`: with the router's choice, the second time that a request of open budgets
        comes here.
        """
        if job.cancelled:
            self._give_up(job)
            return
        is_queued = False
        try:
            if closed_draft is None:
                prompt = self._preparation.prepare(job.request)
            else:
                prompt = self._preparation.finish(job.request, closed_draft)
            if isinstance(prompt, Draft):
                job.draft, waiting_jobs, leaders = prompt, self._undecided, [job]
            else:
                for answer_job in job.group:
                    answer_job.begin(prompt, self._preparation.vocabulary)
                first_sights = prompt.sights if job.draft is None else job.draft.sights
                sight_pairs = zip(first_sights, prompt.sights, strict=True)
                self.metrics.count_cache(not (a.batches or b.batches) for a, b in sight_pairs)
                waiting_jobs, leaders = self._waiting, self._leaders(job)
            with self._change:
                waiting_jobs.extend(leaders)
                is_queued = True
                self._change.notify_all()
        except ValueError as error:
            self._refuse_group(job, error if isinstance(error, Refused) else Refused(str(error)))
        finally:
            # our own bug: the error goes on, the client must not wait
            if not is_queued and not job.ended:
                self._refuse_group(job, _failed())

    def _leaders(self, job: Job) -> list[Job]:
        """The job alone, whose group joins the batch with it; or each of the group by itself, where
        they do not fit side by side.
        """
        row_count = len(job.group)
        if row_count <= self._rows and (
            row_count == 1 or job.length * row_count <= self.settings.queue.batch_tokens
        ):
            return [job]
        jobs, job.group = job.group, [job]
        return jobs

    def _refuse(self, job: Job, refused: Refused) -> None:
        self._leave(job, "refused" if refused.status < 500 else "failed")
        job.refuse(refused)

    def _refuse_group(self, job: Job, refused: Refused) -> None:
        for answer_job in job.group:
            self._refuse(answer_job, refused)

    def _leave(self, job: Job, outcome: str) -> None:
        with self._change:
            self._accepted.discard(job)
            self._pace.count(time.monotonic())
            self._change.notify_all()
        self.metrics.requests.labels(outcome).inc()

    # ------------------------------------------------------------------ the model's thread
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                for job, reason in self._scheduler.turn(self._fitting()):
                    self._finish(job, reason)
                for job in self._next_looks():
                    self._look(job)
                self._count()
        finally:  # after an error nobody must wait for ever
            with self._change:
                self._closing, open_jobs = True, list(self._accepted)
            for job in open_jobs:
                self._refuse(job, _failed())

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; False once all is done and the engine is closing."""
        with self._change:
            while not (self._undecided or self._waiting or self._scheduler.running):
                if self._closing and not self._accepted:
                    return False
                self._change.wait()
        return True

    def _next_looks(self) -> list[Job]:
        """From the head of those whose budgets are open: as many as one pass of the tower sees, one
        at least; what was kept costs none.
        """
        with self._change:
            picture_count, jobs = 0, []
            while self._undecided:
                draft = self._undecided[0].draft
                assert draft is not None  # `_prepare`
                picture_count += draft.unseen
                if jobs and picture_count > TOWER_BATCH:
                    break
                jobs.append(self._undecided.popleft())
        return jobs

    def _look(self, job: Job) -> None:
        """The router chooses; the rest is prepared beside the model."""
        assert job.draft is not None
        if job.cancelled or job.is_late:
            self._give_up(job)
            return
        closed_draft = self._scheduler.look(job.draft)
        if closed_draft is None:
            for answer_job in job.group:
                self._finish(answer_job, "memory")
            return
        self._preparers.submit(self._prepare, job, closed_draft).add_done_callback(_tell)

    def _fitting(self) -> list[Job]:
        """From the head of those who wait, in order: as many as there are rows and room for."""
        limits, running, fitting_jobs = self.settings.queue, self._scheduler.running, []
        prompt, row_length = 0, max((job.length for job in running), default=0)
        row_count = len(running)
        with self._change:
            while self._waiting:
                job = self._waiting[0]
                if job.cancelled or job.is_late:
                    self._waiting.popleft()
                    self._give_up(job)
                    continue
                prompt, row_length = max(prompt, len(job.prepared.ids)), max(row_length, job.length)
                row_count += len(job.group)
                if (
                    row_count > self._rows
                    or (fitting_jobs and prompt * (len(fitting_jobs) + 1) > limits.prefill_tokens)
                    or (row_count > 1 and row_length * row_count > limits.batch_tokens)
                ):
                    break
                fitting_jobs.append(self._waiting.popleft())
        return fitting_jobs

    def _give_up(self, job: Job) -> None:
        """On one who waited too long, or left, and its group."""
        seconds = self.settings.limits.seconds
        late = Busy(
            f"the request waited {seconds:g} s for its turn; try again later",
            self.settings.queue.retry_after_seconds,
        )
        for answer_job in job.group:
            if not job.cancelled:
                self._refuse(answer_job, late)
                continue
            self._leave(answer_job, "cancelled")
            if answer_job.is_ready:
                answer_job.finish("cancelled")
            else:
                answer_job.refuse(
                    Refused("the client left before its request was read", 499, "cancelled")
                )

    def _finish(self, job: Job, reason: End) -> None:
        if reason == "memory":
            memory_text = (
                "the device ran out of memory with this request and those beside it; try again "
                "later, or at a smaller scale"
            )
            self._refuse(
                job, Busy(memory_text, self.settings.queue.retry_after_seconds, status=503)
            )
            return
        if reason == "grammar":
            answer_format, guide = job.request.answer_format, job.choice.guide
            assert answer_format is not None and guide is not None
            grammar_text = (
                f"{answer_format.field_path}: this server cannot follow it beyond "
                f"{len(job.writing.tokens)} tokens of the answer: {guide.failure}"
            )
            self._refuse(job, Refused(grammar_text, param=answer_format.field_path))
            return
        self._leave(job, reason)
        self.metrics.count(job.finish(reason))

    def _count(self) -> None:
        with self._change:
            accepted, running = len(self._accepted), len(self._scheduler.running)
        self.metrics.running.set(running)
        self.metrics.waiting.set(accepted - running)


def _failed() -> Refused:
    return Refused(
        "the server failed on its own account; its log says why", status=500, code="internal_error"
    )


def _put(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[Event | Refused]",
    event: Event | Refused,
) -> None:
    try:
        loop.call_soon_threadsafe(events.put_nowait, event)
    except RuntimeError:  # the loop has ended, and with it the client
        logger.debug("an event for a client whose event loop has ended")


def _tell(preparation: "Future[None]") -> None:
    """Report an error that is no client's mistake."""
    preparation_error = preparation.exception()
    if preparation_error is not None:
        logger.error("preparing a request failed", exc_info=preparation_error)
