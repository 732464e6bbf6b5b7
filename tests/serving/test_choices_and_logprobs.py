"""Several answers to one prompt, which is read once; and log-probabilities, which are those of the
model's own distribution.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from openai import BadRequestError, OpenAI
from serving_files import ask, png

from m3.inference import Generation
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import AnswerFormat, Finished, Refused, Request, Turn, Visual
from m3.serving.engine.vocabulary import Vocabulary
from m3.serving.settings import Queue, Settings


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def made(loaded) -> Iterator[Callable[..., Engine]]:
    """Engines with settings of their own, closed in the end."""
    engines: list[Engine] = []

    def make(**settings) -> Engine:
        engines.append(Engine(*loaded, Settings(name="tiny", **settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(tokens: int = 10, temperature: float = 1.0, **options) -> Request:
    turn = Turn("user", (Visual("image", png()), "What is it?"))
    return Request((turn,), 9, Generation(tokens, temperature), **options)


def value(engine: Engine, name: str, **labels: str) -> float:
    return engine.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize(
    "queue", [Queue(), Queue(running=2), Queue(batch_tokens=100)], ids=["shared", "rows", "memory"]
)
def test_each_choice_has_a_seed_of_its_own(made, queue: Queue) -> None:
    """Choice number i is what the seed i further gives alone, side by side or one after another."""
    engine = made(queue=queue)
    answers = engine.answers(request(seed=7, choice_count=4, top_count=2))
    alone = [engine.answer(request(seed=7 + n, top_count=2)) for n in range(4)]
    assert [answer.index for answer in answers] == [0, 1, 2, 3]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert len({answer.text for answer in answers}) > 1
    assert value(engine, "m3_tower_runs_total") == 1
    assert value(engine, "m3_accepted_total") == 8
    told = [[token.written.value for token in answer.log_probabilities] for answer in answers]
    told_alone = [[token.written.value for token in answer.log_probabilities] for answer in alone]
    for own, other in zip(told, told_alone, strict=True):
        assert own == pytest.approx(other, abs=1e-4)


def test_the_prompt_counts_once(made) -> None:
    engine = made()
    answers = engine.answers(request(tokens=3, choice_count=5, temperature=0.0))
    assert len({answer.text for answer in answers}) == 1
    assert value(engine, "m3_prompt_tokens_total") == answers[0].usage.prompt_tokens
    assert value(engine, "m3_new_tokens_total") == sum(a.usage.new_tokens for a in answers)
    assert value(engine, "m3_visual_tokens_total", scale="9") == 9


def test_choices_with_a_form_go_ways_of_their_own(engine: Engine) -> None:
    form = AnswerFormat("regex", "[a-z]{6}", "guided_regex")
    answers = engine.answers(request(choice_count=6, answer_format=form, seed=1))
    assert all(len(answer.text) == 6 and answer.reason == "stop" for answer in answers)
    assert len({answer.text for answer in answers}) > 1


@pytest.mark.parametrize(
    ("queue", "count", "limit"), [(Queue(), 9, 8), (Queue(running=1, waiting=2), 4, 3)]
)
def test_too_many_choices(made, queue: Queue, count: int, limit: int) -> None:
    engine = made(queue=queue)
    with pytest.raises(Refused, match=rf"n: .* {count} answers, .* limit of {limit}$") as raised:
        engine.answers(request(choice_count=count))
    assert raised.value.param == "n"


def test_a_choice_that_leaves_takes_the_others_with_it(made) -> None:
    engine = made()
    ends: list = []
    job = engine.submit(request(tokens=400, choice_count=3), ends.append)
    job.cancelled = True
    engine.close()
    assert sum(isinstance(event, Finished | Refused) for event in ends) == 3
    assert value(engine, "m3_requests_total", outcome="cancelled") == 3


def forward_log_probabilities(loaded, ids: list[int]) -> torch.Tensor:
    """Those of the token behind each of a text's."""
    model, _ = loaded
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_a_forward_pass(engine: Engine, loaded, temperature) -> None:
    """Before temperature and nucleus, though both choose the tokens."""
    tokenizer = loaded[1].tokenizer
    asked = Request((), prompt="The colour is", seed=5, top_count=4)
    answer = engine.answer(replace(asked, generation=Generation(8, temperature, 0.9)))
    prompt_ids = tokenizer("The colour is", add_special_tokens=False)["input_ids"]
    vocabulary = Vocabulary(tokenizer, len(tokenizer), {2})
    token_ids = {vocabulary.token_bytes(token): token for token in range(len(tokenizer))}
    ids = list(prompt_ids)
    for number, token in enumerate(answer.log_probabilities):
        expected = forward_log_probabilities(loaded, ids)[-1]
        values, likeliest = expected.topk(4)
        told_values = [told.value for told in token.likeliest]
        assert told_values == pytest.approx(values.tolist(), abs=1e-4), number
        assert [token_ids[told.token] for told in token.likeliest] == likeliest.tolist()
        ids.append(token_ids[token.written.token])
        assert token.written.value == pytest.approx(float(expected[ids[-1]]), abs=1e-4)
    assert len(answer.log_probabilities) >= answer.usage.new_tokens - 1  # but for the end


def test_log_probabilities_do_not_know_the_form(engine: Engine) -> None:
    free = engine.answer(request(tokens=1, temperature=0.0, top_count=5))
    form = AnswerFormat("choice", '["7"]', "guided_choice")
    held = engine.answer(request(tokens=1, temperature=0.0, top_count=5, answer_format=form))
    assert held.text == "7"
    likeliest = [
        token.likeliest for token in (free.log_probabilities[0], held.log_probabilities[0])
    ]
    assert [told.token for told in likeliest[0]] == [told.token for told in likeliest[1]]
    assert held.log_probabilities[0].written.value < likeliest[1][0].value


OPTIONS = {"model": "tiny", "max_tokens": 6, "seed": 2, "temperature": 1, "n": 3}


def test_choices_and_log_probabilities_with_the_client(client: OpenAI) -> None:
    asked = {**OPTIONS, "messages": ask(png()), "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage is not None and chunks[-1].usage == whole.usage
    single = client.chat.completions.create(**{**asked, "n": 1})
    assert single.usage is not None
    assert single.usage.prompt_tokens == whole.usage.prompt_tokens
    assert single.choices[0].message == whole.choices[0].message
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(chunk.delta.content or "" for chunk in own) == choice.message.content
        assert own[0].delta.role == "assistant"
        assert own[-1].finish_reason == choice.finish_reason
        streamed = [token for chunk in own if chunk.logprobs for token in chunk.logprobs.content]
        assert choice.logprobs is not None
        tokens = choice.logprobs.content
        assert [token.bytes for token in streamed] == [token.bytes for token in tokens]
        for token, other in zip(streamed, tokens, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert len(token.top_logprobs) == 2
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
            assert bytes(token.bytes or []).decode(errors="replace") == token.token
        text = b"".join(bytes(token.bytes or []) for token in tokens).decode(errors="replace")
        assert text.strip() == choice.message.content


def test_log_probabilities_without_others(client: OpenAI) -> None:
    asked = {**OPTIONS, "n": 1, "messages": ask()}
    answer = client.chat.completions.create(**asked, logprobs=True)
    assert answer.choices[0].logprobs is not None
    assert all(token.top_logprobs == [] for token in answer.choices[0].logprobs.content)
    assert client.chat.completions.create(**asked).choices[0].logprobs is None
    with pytest.raises(BadRequestError, match="set logprobs"):
        client.chat.completions.create(**asked, top_logprobs=2)
