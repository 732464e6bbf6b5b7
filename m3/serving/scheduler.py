"""What the model's thread does in one turn: a token for every answer under way, then the newcomers' prompts and first tokens.

In: jobs that join. Out: jobs that ended, each with the reason. Nobody else touches the model.
"""

from collections.abc import Sequence

import torch

from m3.inference.seeing import image_inputs
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.batch import Batch
from m3.serving.features import Features
from m3.serving.job import Job
from m3.serving.metrics import Metrics
from m3.serving.requests import Reason
from m3.serving.sampling import choose


class Scheduler:
    """`running`: the jobs of the batch, row by row."""

    def __init__(
        self, model: M3ForConditionalGeneration, processor: M3Processor, features: Features, metrics: Metrics
    ) -> None:
        self._model, self._processor, self._features, self._metrics = model, processor, features, metrics
        self._batch = Batch(model, processor.tokenizer.pad_token_id or 0)
        self._stops = stop_ids(model, processor)
        self._tokens: list[int] = []  # the newest of each row
        self.running: list[Job] = []

    def turn(self, newcomers: Sequence[Job]) -> list[tuple[Job, Reason]]:
        """Old rows first: what a prompt costs in time does not come before their next token."""
        ended: list[tuple[Job, Reason]] = []
        if self.running:
            logits = self._batch.step(torch.tensor(self._tokens, device=self._model.device))
            self._metrics.steps.inc()
            self._tokens = choose(logits, [job.choice for job in self.running]).tolist()
            ended += self._take(self.running, self._tokens)
        if newcomers:
            logits = self._join(newcomers)
            tokens = choose(logits, [job.choice for job in newcomers]).tolist()
            self.running, self._tokens = [*self.running, *newcomers], [*self._tokens, *tokens]
            ended += self._take(newcomers, tokens)
        gone = {job for job, _ in ended}
        kept = [row for row, job in enumerate(self.running) if job not in gone]
        self._batch.keep(kept)
        self.running, self._tokens = [self.running[row] for row in kept], [self._tokens[row] for row in kept]
        return ended

    def _join(self, jobs: Sequence[Job]) -> torch.Tensor:
        prompts = [job.prepared for job in jobs]
        shown = [
            sight.seen or self._features.see(sight.digest, sight.prepared)
            for prompt in prompts
            for sight in prompt.sights
        ]
        scales = [scale for prompt in prompts for scale in prompt.scales]
        images = image_inputs(self._model, self._processor, shown, scales)
        return self._batch.join([prompt.ids for prompt in prompts], images)

    def _take(self, jobs: Sequence[Job], tokens: Sequence[int]) -> list[tuple[Job, Reason]]:
        ended: list[tuple[Job, Reason]] = []
        for job, token in zip(jobs, tokens, strict=True):
            reason = job.take(token, self._stops)
            if reason is not None:
                ended.append((job, reason))
        return ended


def stop_ids(model: M3ForConditionalGeneration, processor: M3Processor) -> frozenset[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    listed = [ends] if isinstance(ends, int) else ends or []
    return frozenset(token for token in (processor.tokenizer.eos_token_id, *listed) if token is not None)
