"""LiteLLM: its proxy and SDK send one form for all servers."""

from typing import Any

import litellm
import pytest

QUESTION = "What colour is the background?"


def ask(picture: str) -> list[dict[str, Any]]:
    parts = [
        {"type": "image_url", "image_url": picture},
        {"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}},
    ]
    return [{"role": "user", "content": parts}]


def complete(address: str, model: str, provider: str = "openai", **fields: Any) -> Any:
    return litellm.completion(
        model=f"{provider}/{model}", api_base=address, api_key="none", **fields
    )


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_whole_and_streamed(
    address: str, model: str, provider: str, picture: str, expected: str
) -> None:
    whole = complete(address, model, provider, messages=ask(picture))
    assert whole.choices[0].message.content == expected
    chunks = complete(address, model, provider, messages=ask(picture), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_second_turn(address: str, model: str, picture: str, expected: str) -> None:
    messages = ask(picture)
    first = complete(address, model, messages=messages).choices[0].message
    for said in (first, first.model_dump()):
        turns = [*messages, said, {"role": "user", "content": QUESTION}]
        assert complete(address, model, messages=turns).choices[0].message.content == expected


def test_a_budget_in_the_name(address: str, model: str, picture: str) -> None:
    reply = complete(address, f"{model}@9", messages=ask(picture))
    assert reply.usage.visual_tokens == 9


def test_tools_are_refused_in_words(address: str, model: str, picture: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(litellm.BadRequestError, match="this server cannot call tools"):
        complete(address, model, messages=ask(picture), tools=tools)
