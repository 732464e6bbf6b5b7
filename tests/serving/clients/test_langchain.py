"""LangChain's ChatOpenAI, with each of its forms of an image."""

from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

QUESTION = "What colour is the background?"


@pytest.fixture(scope="module")
def chat(address: str, model: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=address, api_key="none", model=model, max_retries=0)  # pyright: ignore


def forms(picture: str) -> dict[str, dict[str, Any]]:
    content = picture.partition(",")[2].replace("\n", "")
    return {
        "OpenAI's": {"type": "image_url", "image_url": {"url": picture}},
        "bare": {"type": "image_url", "image_url": picture},
        "v0.3": {
            "type": "image",
            "source_type": "base64",
            "mime_type": "image/png",
            "data": content,
        },
        "v1": {"type": "image", "mime_type": "image/png", "base64": content},
    }


def question(image: dict[str, Any]) -> HumanMessage:
    return HumanMessage(content=[image, {"type": "text", "text": QUESTION}])


@pytest.mark.parametrize("form", ["OpenAI's", "bare", "v0.3", "v1"])
def test_forms_of_an_image(chat: ChatOpenAI, picture: str, expected: str, form: str) -> None:
    assert chat.invoke([question(forms(picture)[form])]).content == expected


def test_streamed_and_in_a_batch(chat: ChatOpenAI, picture: str, expected: str) -> None:
    asked = [question(forms(picture)["OpenAI's"])]
    assert "".join(str(chunk.content) for chunk in chat.stream(asked)) == expected
    assert [reply.content for reply in chat.batch([asked, asked])] == [expected] * 2


def test_history(chat: ChatOpenAI, picture: str, expected: str) -> None:
    asked = question(forms(picture)["bare"])
    first = chat.invoke([asked])
    for said in (first, AIMessage(content="")):
        turns = [SystemMessage("Be brief."), asked, said, HumanMessage(QUESTION)]
        assert chat.invoke(turns).content == expected


def test_tools_are_refused_in_words(chat: ChatOpenAI, picture: str) -> None:
    def look(where: str) -> str:
        """Look somewhere."""
        return where

    with pytest.raises(openai.BadRequestError, match="this server cannot call tools"):
        chat.bind_tools([look]).invoke([question(forms(picture)["bare"])])
