"""Sampled answers that depend on their question alone: not on the batch it runs in, nor on what was
answered before.

in:  a decoding with a temperature and a seed per row; out: a logits processor for greedy
    `generate`.

A token drawn from a distribution is the largest of its log-probabilities plus Gumbel noise (Gumbel
1954; Maddison et al. 2014, arXiv:1411.0030). With noise from a generator of each row, a benchmark
that was killed and resumed has the answers that it would have had, although other questions share
its batches.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from m3.digest import digest
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.questions import Question


class SeededSampling(LogitsProcessor):
    """Scores of which the largest is a draw from what temperature, top-k and top-p leave, in
    transformers' order.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]) -> None:
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(decoding.temperature)]
        if decoding.top_k > 0:
            self._warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(decoding.top_p))
        # on the CPU: alike everywhere
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "b l"], scores: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)  # pyright: ignore[reportArgumentType] (its LongTensor is a Tensor)
        noise = torch.stack(
            [
                torch.empty(scores.shape[1]).exponential_(generator=row_generator)
                for row_generator in self._generators
            ]
        )
        return scores - noise.log().to(scores.device)


def question_seeds(questions: Sequence[Question]) -> list[int]:
    """A seed for each question, from all that it asks; those that are asked several times have
    one each time.
    """
    seeds, times = [], Counter[str]()
    for question in questions:
        pictures = [picture.digest for picture in question.pictures]
        question_key = digest(
            [
                question.text,
                *pictures,
                str(question.scale),
                question.method,
                repr(question.decoding),
            ]
        )
        seeds.append(int(digest([question_key, str(times[question_key])])[:15], 16))
        times[question_key] += 1
    return seeds
