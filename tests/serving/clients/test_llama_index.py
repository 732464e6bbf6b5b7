"""LlamaIndex' OpenAILike, and instructor, which asks for tools."""

import base64

import instructor
import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel

QUESTION = "What colour is the background?"


@pytest.fixture(scope="module")
def llm(address: str, model: str) -> OpenAILike:
    return OpenAILike(
        model=model, api_base=address, api_key="none", is_chat_model=True, max_retries=0
    )


def question(picture: str) -> ChatMessage:
    content = base64.b64decode(picture.partition(",")[2])
    blocks = [ImageBlock(image=content), TextBlock(text=QUESTION)]
    return ChatMessage(role=MessageRole.USER, blocks=blocks)


def test_chat_and_stream(llm: OpenAILike, picture: str, expected: str) -> None:
    asked = [question(picture)]
    assert llm.chat(asked).message.content == expected
    pieces = [piece.delta or "" for piece in llm.stream_chat(asked)]
    assert "".join(pieces) == expected


def test_second_turn(llm: OpenAILike, picture: str, expected: str) -> None:
    asked = question(picture)
    turns = [asked, llm.chat([asked]).message, ChatMessage(role="user", content=QUESTION)]
    assert llm.chat(turns).message.content == expected


def test_instructor_is_told_of_tools(address: str, model: str) -> None:
    class Colour(BaseModel):
        name: str

    client = instructor.from_openai(OpenAI(base_url=address, api_key="none", max_retries=0))
    with pytest.raises(Exception, match="this server cannot call tools"):
        client.chat.completions.create(
            model=model,
            response_model=Colour,
            max_retries=1,
            messages=[{"role": "user", "content": QUESTION}],
        )
