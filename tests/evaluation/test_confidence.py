"""The confidence of an answer is that of a plain forward pass over it, and recording it changes
no answer.
"""

import math
from typing import Any

import pytest
import torch

from m3.evaluation.answering.confidence import ChosenTokens
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.engine import Engine
from m3.evaluation.answering.questions import Picture, Question
from m3.evaluation.answering.seeded_sampling import SeededSampling, question_seeds
from tests.evaluation.conftest import SCALES, make_image

TOKENS = 6
DECODINGS = {
    "greedy": Decoding(max_new_tokens=TOKENS),
    "sampled": Decoding(max_new_tokens=TOKENS, do_sample=True, temperature=2.0, top_k=5),
    "stopped": Decoding(max_new_tokens=TOKENS, until=tuple("aeiou0123456789 ")),
}


def questions(engine: Engine, decoding: Decoding) -> list[Question]:
    messages = [{"role": "user", "content": "<image>\nWhich colour"}]
    return [
        engine.question(messages, [Picture.of(make_image(index))], scale, decoding)
        for index, scale in enumerate(SCALES)
    ]


def plain(engine: Engine, question: Question, answer: torch.Tensor) -> float:
    """One forward pass over prompt and answer, without the engine."""
    inputs = engine.processor(
        images=[question.pictures[0].image],
        text=[question.text],
        matryoshka_vis_token_scale=question.scale,
        return_tensors="pt",
    )
    ids = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    named = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        log_p = engine.model(**named).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return math.exp(float(log_p.gather(1, answer[:, None]).mean()))


def spied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """What `generate` is given and what it returns, from now on."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    generate = engine.model.generate  # pyright: ignore[reportAttributeAccessIssue] (it binds to a protocol)

    def spy(**given: Any) -> torch.Tensor:
        calls.append((given, generate(**given)))
        return calls[-1][1]

    monkeypatch.setattr(engine.model, "generate", spy)
    return calls


@pytest.mark.parametrize("name", DECODINGS)
def test_confidence_is_that_of_a_plain_forward(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
):
    """A batch of four scales; rows end at different lengths where tokens stop them."""
    asked = questions(engine, DECODINGS[name])
    calls = spied(engine, monkeypatch)
    torch.manual_seed(0)
    (batch,) = engine.answer(asked, batch_size=4)
    lengths = [reply.answer_tokens for _, reply in batch]
    assert len(set(lengths)) > 1 or name != "stopped"
    output = calls[0][1]
    for row, (index, reply) in enumerate(batch):
        answer = output[row, output.shape[1] - max(lengths) :][: reply.answer_tokens]
        expected = plain(engine, asked[index], answer)
        assert reply.confidence == pytest.approx(expected, rel=1e-4)  # measured: below 2e-6
    assert len({reply.confidence for _, reply in batch}) == len(SCALES)


@pytest.mark.parametrize("name", DECODINGS)
def test_recording_changes_no_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str):
    """The same call of `generate` without the recorder gives the same ids."""
    calls = spied(engine, monkeypatch)
    asked = questions(engine, DECODINGS[name])
    list(engine.answer(asked, batch_size=4))
    given, output = calls[0]
    recorder, *others = given.pop("logits_processor")
    assert isinstance(recorder, ChosenTokens)
    if others:  # the draws of a sampled answer, from the beginning
        longest_first = sorted(range(len(asked)), key=lambda n: -asked[n].scale)
        seeds = question_seeds(asked)
        given["logits_processor"] = [
            SeededSampling(DECODINGS[name], [seeds[n] for n in longest_first])
        ]
    assert torch.equal(engine.model.generate(**given), output)  # pyright: ignore[reportAttributeAccessIssue]


def test_beams_and_continuations_have_none(engine: Engine):
    asked = questions(engine, Decoding(max_new_tokens=2, num_beams=2))
    messages = [{"role": "user", "content": "<image>\nWhich colour"}]
    asked.append(engine.question(messages, [Picture.of(make_image(0))], 4, Decoding(), "red"))
    replies = [reply for batch in engine.answer(asked, batch_size=4) for _, reply in batch]
    assert [reply.confidence for reply in replies] == [None] * (len(SCALES) + 1)
