"""OpenAI's Python client, of the newest version and of the oldest that is still in use."""

from typing import Any

import pytest
from openai import BadRequestError, OpenAI

QUESTION = "What colour is the background?"


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=address, api_key="none", max_retries=0)


def ask(picture: str, **image: Any) -> list[Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": picture} | image},
        {"type": "text", "text": QUESTION},
    ]
    return [{"role": "user", "content": parts}]


def test_whole_and_streamed(client: OpenAI, model: str, picture: str, expected: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ask(picture), max_tokens=2048)
    assert whole.choices[0].message.content == expected
    chunks = list(client.chat.completions.create(model=model, messages=ask(picture), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert whole._request_id


@pytest.mark.parametrize("dump", ["model_dump", "to_dict"])
def test_second_turn(client: OpenAI, model: str, picture: str, expected: str, dump: str) -> None:
    messages = ask(picture)
    first = client.chat.completions.create(model=model, messages=messages).choices[0].message
    messages += [getattr(first, dump)(), {"role": "user", "content": QUESTION}]
    second = client.chat.completions.create(model=model, messages=messages)
    assert second.choices[0].message.content == expected


def test_budgets(client: OpenAI, model: str, picture: str) -> None:
    asked: list[tuple[dict[str, Any], Any]] = [
        ({"model": f"{model}@9"}, 9),
        ({"messages": ask(picture, detail="low")}, None),
        ({"extra_body": {"matryoshka_vis_token_scale": 36}}, 36),
    ]
    for fields, tokens in asked:
        reply = client.chat.completions.create(
            **({"model": model, "messages": ask(picture)} | fields)
        )
        assert reply.usage is not None and reply.usage.model_extra is not None
        visual_tokens = reply.usage.model_extra["visual_tokens"]
        assert visual_tokens == tokens if tokens else visual_tokens < 144


def test_tools_are_refused_in_words(client: OpenAI, model: str, picture: str) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(BadRequestError, match="this server cannot call tools") as refused:
        client.chat.completions.create(model=model, messages=ask(picture), tools=tools)
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
