"""The official client, unchanged, against a server."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from serving_files import ask, data_address, png

from m3.inference import Conversation, Generation


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


SCALES = (1, 4, 9, 36, 144)


@pytest.mark.parametrize("scale", SCALES)
def test_answers_are_those_of_a_conversation(client: OpenAI, loaded, scale: int) -> None:
    conversation = Conversation(*loaded, Generation(12))
    conversation.show_image(png())
    expected = conversation.ask("What is it?", scale)
    extra = {"matryoshka_vis_token_scale": scale}
    answer = client.chat.completions.create(
        model="tiny", messages=ask(png()), max_tokens=12, extra_body=extra
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.visual_tokens + expected.text_tokens
    assert answer.usage.model_extra == {"visual_tokens": scale, "visual_tokens_per_image": [scale]}
    assert answer.usage.completion_tokens <= 12


@pytest.mark.parametrize("scale", SCALES)
def test_a_stream_put_together_is_the_whole_answer(client: OpenAI, scale: int) -> None:
    options = {
        "model": "tiny",
        "messages": ask(png("blue")),
        "max_completion_tokens": 12,
        "extra_body": {"matryoshka_vis_token_scale": scale},
    }
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_images_at_scales_of_their_own(client: OpenAI) -> None:
    parts = [
        {
            "type": "image_url",
            "image_url": {"url": data_address(png("red"))},
            "matryoshka_vis_token_scale": 1,
        },
        {"type": "text", "text": "and"},
        {"type": "image_url", "image_url": {"url": data_address(png("green"))}},
    ]
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        max_tokens=2,
        extra_body={"matryoshka_vis_token_scale": 36},
    )
    assert answer.usage.model_extra["visual_tokens_per_image"] == [1, 36]


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny"
    assert model.model_extra["matryoshka_vis_token_scales"] == [1, 4, 9, 16, 36, 144]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(
        NotFoundError, match="there is no model 'other' here; this server has 'tiny'"
    ):
        client.models.retrieve("other")


def test_a_scale_that_does_not_exist_lists_those_that_do(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="choose one of 1, 4, 9, 16, 36, 144"):
        client.chat.completions.create(
            model="tiny", messages=ask(png()), extra_body={"matryoshka_vis_token_scale": 7}
        )
