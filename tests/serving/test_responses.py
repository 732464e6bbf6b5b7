"""`/v1/responses` with the official client: as the chat answers the same question."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field
from serving_files import ask, data_address, png


class Shape(BaseModel):
    sides: int = Field(ge=3, le=6)
    is_red: bool


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def question(*images: bytes, **fields) -> list[dict]:
    shown = [
        {"type": "input_image", "image_url": data_address(image), "detail": "auto", **fields}
        for image in images
    ]
    return [{"role": "user", "content": [*shown, {"type": "input_text", "text": "What is it?"}]}]


def chat(client: OpenAI, messages: list[dict], **options):
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, **options)


def test_a_text(client: OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Why?", max_output_tokens=8)
    expected = chat(client, [{"role": "user", "content": "Why?"}])
    assert answer.output_text == expected.choices[0].message.content
    assert answer.usage is not None and expected.usage is not None
    assert answer.usage.input_tokens == expected.usage.prompt_tokens
    assert answer.usage.output_tokens == expected.usage.completion_tokens
    assert answer.status == ("incomplete" if answer.usage.output_tokens == 8 else "completed")


def test_instructions_and_pictures(client: OpenAI) -> None:
    answer = client.responses.create(
        model="tiny",
        instructions="Be brief.",
        input=question(png(), matryoshka_vis_token_scale=9),
        max_output_tokens=8,
        extra_body={"matryoshka_vis_token_scale": 36},
    )
    messages = [{"role": "system", "content": "Be brief."}, *ask(png())]
    expected = chat(client, messages, extra_body={"matryoshka_vis_token_scale": 9})
    assert answer.output_text == expected.choices[0].message.content
    assert answer.usage.model_extra["visual_tokens_per_image"] == [9]
    assert answer.instructions == "Be brief."


def test_an_answer_comes_back_as_input(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input=question(png()), max_output_tokens=8)
    again = {"role": "user", "content": "Why?"}
    items = [*question(png()), *(item.model_dump() for item in first.output), again]
    second = client.responses.create(model="tiny", input=items, max_output_tokens=8)
    answered = {"role": "assistant", "content": first.output_text}
    expected = chat(client, [*ask(png()), answered, again])
    assert second.output_text == expected.choices[0].message.content


def test_the_events_of_a_stream(client: OpenAI) -> None:
    asked = {"model": "tiny", "input": question(png()), "max_output_tokens": 8}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_the_stream_helper_of_the_client(client: OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Why?", max_output_tokens=200) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        if stream._state._completed_response is not None:
            assert stream.get_final_response().output_text == text


def test_parse_gives_objects_of_pydantic(client: OpenAI) -> None:
    answer = client.responses.parse(model="tiny", input=question(png()), text_format=Shape)
    assert isinstance(answer.output_parsed, Shape)
    assert answer.status == "completed"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools", "cannot call tools"),
        ({"background": True}, "background", "while the client waits"),
        ({"input": []}, "input", "list of 1 or more"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
          "instructions": "Be brief."}, "input.0.content.0", "data: address"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "set"}}}},
         "text.format.schema", "Invalid type: set"),
        ({"extra_body": {"matryoshka_vis_token_scale": 7}, "input": question(png())},
         "matryoshka_vis_token_scale", "choose one of"),
    ],
)  # fmt: skip
def test_what_is_refused(client: OpenAI, fields: dict, param: str, words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as raised:
        client.responses.create(**{"model": "tiny", "input": "Why?", **fields})
    assert raised.value.param == param


def test_what_changes_nothing_is_ignored(client: OpenAI) -> None:
    options = {
        "store": True,
        "metadata": {"a": "b"},
        "user": "me",
        "tools": [],
        "truncation": "disabled",
    }
    answer = client.responses.create(model="tiny", input="Why?", max_output_tokens=2, **options)
    assert answer.metadata == {"a": "b"}
    with pytest.raises(NotFoundError, match="there is no model 'other' here"):
        client.responses.create(model="other", input="Why?")
