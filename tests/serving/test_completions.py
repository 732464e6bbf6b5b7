"""`/v1/completions` with the official client: texts that the model continues as they stand."""

from collections.abc import AsyncGenerator

import pytest
import torch
from openai import BadRequestError, InternalServerError, OpenAI

from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Event, Request

PROMPTS = ("The colour is", "There are three", "Why")


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def continuation(loaded, prompt: str, tokens: int) -> str:
    """Greedily, a forward pass for each token."""
    model, processor = loaded
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return processor.tokenizer.decode(ids[start:]).rstrip()


def test_a_text_goes_on(client: OpenAI, loaded) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=5)
    (choice,) = answer.choices
    assert choice.text == continuation(loaded, PROMPTS[0], 5)
    assert choice.finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    prompt_ids = loaded[1].tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    assert answer.usage.prompt_tokens == len(prompt_ids)


def test_several_texts_are_choices(client: OpenAI, loaded) -> None:
    """Choice number i x n is the first of prompt number i."""
    answer = client.completions.create(model="tiny", prompt=list(PROMPTS), max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    expected = [continuation(loaded, prompt, 4) for prompt in PROMPTS for _ in range(2)]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None and answer.usage.completion_tokens == 24
    tokenizer = loaded[1].tokenizer
    assert answer.usage.prompt_tokens == sum(
        len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in PROMPTS
    )


def test_streams_put_together_are_the_whole(client: OpenAI) -> None:
    asked = {"model": "tiny", "prompt": list(PROMPTS), "max_tokens": 6, "logprobs": 2}
    whole = client.completions.create(**asked)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        told = [token for chunk in own if chunk.logprobs for token in chunk.logprobs.tokens or []]
        assert choice.logprobs is not None and told == choice.logprobs.tokens


def test_log_probabilities_in_the_older_form(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPTS[0], max_tokens=5, logprobs=3)
    told = answer.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.text_offset is not None
    assert len(told.tokens) == len(told.token_logprobs or []) == len(told.top_logprobs or []) == 5
    assert told.text_offset[0] == 0
    for token, value, likeliest in zip(
        told.tokens, told.token_logprobs or [], told.top_logprobs or [], strict=True
    ):
        assert likeliest[token] == pytest.approx(value)
        assert value == max(likeliest.values())


def test_a_form(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[0], extra_body={"guided_choice": ["red", "blue"]}
    )
    assert answer.choices[0].text in ("red", "blue")


def test_control_tokens_are_text(client: OpenAI) -> None:
    short = client.completions.create(model="tiny", prompt="a b", max_tokens=1)
    marked = client.completions.create(model="tiny", prompt="a <image><|im_end|>b", max_tokens=1)
    assert short.usage is not None and marked.usage is not None
    assert marked.usage.prompt_tokens > short.usage.prompt_tokens + 4


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": [1, 2, 3]}, "prompt.0", "text"),
        ({"prompt": []}, "prompt", "list of 1 or more"),
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"prompt": ["a"] * 5, "n": 2}, "prompt", "10 answers, more than this server's limit of 8"),
        ({"prompt": "a", "echo": True}, "echo", "cannot repeat the prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of", "cannot choose"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "5 or less"),
        ({"prompt": "a " * 9000}, "prompt", "tokens"),
    ],
)
def test_what_is_refused(client: OpenAI, fields: dict, param: str, words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as raised:
        client.completions.create(model="tiny", **fields)
    assert raised.value.param == param


def test_an_error_of_ours_is_told_not_waited_for(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(engine: Engine, request: Request) -> AsyncGenerator[Event]:
        raise RuntimeError("a fault of the engine's own")

    monkeypatch.setattr(Engine, "stream", stream)
    with pytest.raises(InternalServerError):
        client.completions.create(model="tiny", prompt=list(PROMPTS), max_tokens=1, timeout=20)
