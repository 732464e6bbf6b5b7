"""One turn of the model's thread: a token for every answer under way, then prompts and first tokens
of new requests.

In: jobs that join. Out: jobs that ended, each with the reason. Nobody else touches the model.

Before a prompt whose budgets are open can join, `look` sees the cheapest view of its pictures and asks
the router.
"""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from m3.inference.budget_choice import choose_budgets
from m3.inference.generation import end_token_ids
from m3.inference.image_features import image_inputs
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.scale_policy import Auto
from m3.serving.engine.active_request import Job
from m3.serving.engine.batch import Batch, Read
from m3.serving.engine.feature_cache import Features
from m3.serving.engine.metrics import Metrics
from m3.serving.engine.preparation import Draft
from m3.serving.engine.requests import End
from m3.serving.engine.sampling import choose, rank

logger = logging.getLogger(__name__)


class Scheduler:
    """`running`: the jobs of the batch, row by row."""

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        features: Features,
        metrics: Metrics,
    ) -> None:
        self._model, self._processor, self._features, self._metrics = (
            model,
            processor,
            features,
            metrics,
        )
        self._batch = Batch(model, processor.tokenizer.pad_token_id or 0)
        self._stops = end_token_ids(model, processor.tokenizer)
        self._tokens: list[int] = []  # the newest of each row
        self.running: list[Job] = []

    def turn(self, newcomers: Sequence[Job]) -> list[tuple[Job, End]]:
        """Old rows first: what a prompt costs in time does not come before their next token.

        `newcomers`: the first of each group of answers to one prompt, which is read once. Who finds
        no room on the device ends with `memory`: newcomers alone, where the batch was not touched
        yet, else all.
        """
        ended: list[tuple[Job, End]] = []
        if self.running and not _fits(lambda: ended.extend(self._step())):
            ended = self._drop(self.running)
        if newcomers:
            read_batches: list[Read] = []
            new_jobs = [job for leader in newcomers for job in leader.group]
            if not _fits(lambda: read_batches.append(self._read(newcomers))):
                ended += _without_room(new_jobs)
            elif not _fits(lambda: ended.extend(self._join(new_jobs, read_batches.pop()))):
                ended_jobs = {job for job, _ in ended}
                ended += self._drop(
                    [job for job in (*self.running, *new_jobs) if job not in ended_jobs]
                )
        self._keep({job for job, _ in ended})
        return ended

    def look(self, draft: Draft) -> Draft | None:
        """The draft with the router's budgets, and with what was seen for them; None where the device
        has no room.
        """
        closed_drafts: list[Draft] = []
        is_room = _fits(lambda: closed_drafts.append(self._choose(draft)))
        return closed_drafts[0] if is_room else None

    def _choose(self, draft: Draft) -> Draft:
        settings, sights = list(draft.settings), list(draft.sights)
        for index, (setting, sight) in enumerate(zip(draft.settings, draft.sights, strict=True)):
            if isinstance(setting, Auto):
                pictures = self._features.see(sight)
                prompts = [draft.ids] * len(pictures)
                settings[index] = tuple(choose_budgets(self._model, setting, pictures, prompts))
                views = dict(zip(sight.views, pictures, strict=True))
                sights[index] = replace(sight, kept={**sight.kept, **views}, batches=())
        return Draft(draft.ids, tuple(settings), tuple(sights))

    def _step(self) -> list[tuple[Job, End]]:
        logits = self._batch.step(torch.tensor(self._tokens, device=self._model.device))
        self._metrics.steps.inc()
        self._tokens, ended = self._advance(self.running, logits)
        return ended

    def _read(self, jobs: Sequence[Job]) -> Read:
        prompts = [job.prepared for job in jobs]
        pictures = [
            picture
            for prompt in prompts
            for sight in prompt.sights
            for picture in self._features.see(sight)
        ]
        budgets = [budget for prompt in prompts for budget in prompt.budgets]
        images = image_inputs(self._model, self._processor, pictures, budgets)
        read_batch = self._batch.read([prompt.ids for prompt in prompts], images)
        return read_batch.repeated([len(job.group) for job in jobs])

    def _join(self, jobs: Sequence[Job], read_batch: Read) -> list[tuple[Job, End]]:
        self._batch.join(read_batch)
        tokens, ended = self._advance(jobs, read_batch.logits)
        self.running, self._tokens = [*self.running, *jobs], [*self._tokens, *tokens]
        return ended

    def _drop(self, jobs: Sequence[Job]) -> list[tuple[Job, End]]:
        """Some layers may have a column more than others now, so nobody of the batch can go on."""
        self._batch.clear()
        self.running, self._tokens = [], []
        return _without_room(jobs)

    def _keep(self, ended_jobs: Set[Job]) -> None:
        kept_rows = [
            row_index for row_index, job in enumerate(self.running) if job not in ended_jobs
        ]
        self._batch.keep(kept_rows)
        self.running, self._tokens = (
            [self.running[row_index] for row_index in kept_rows],
            [self._tokens[row_index] for row_index in kept_rows],
        )

    def _advance(
        self, jobs: Sequence[Job], logits: Float[Tensor, "rows vocab"]
    ) -> tuple[list[int], list[tuple[Job, End]]]:
        """The next token of each, and who ended with it."""
        choices = [job.choice for job in jobs]
        tokens = choose(logits, choices).tolist()
        ended: list[tuple[Job, End]] = []
        for job, token, ranks in zip(jobs, tokens, rank(logits, tokens, choices), strict=True):
            end_reason = job.take(token, self._stops, ranks)
            if end_reason is not None:
                ended.append((job, end_reason))
        return tokens, ended


def _fits(work: Callable[[], None]) -> bool:
    """Does it; False where the device's memory ran out. What it had got is given back by then."""
    try:
        work()
    except torch.OutOfMemoryError as error:
        logger.error(
            "the device's memory ran out: lower queue.batch_tokens, queue.prefill_tokens or "
            "queue.running: %s",
            error,
        )
    else:
        return True
    if torch.accelerator.is_available():
        # here the error, and with it all that its frames held, is gone
        torch.accelerator.empty_cache()
    return False


def _without_room(jobs: Sequence[Job]) -> list[tuple[Job, End]]:
    return [(job, "memory") for job in jobs]
