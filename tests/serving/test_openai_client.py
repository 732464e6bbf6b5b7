"""The official client, unchanged, against a server."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from serving_files import ask, data_address, png, serving

from m3.inference import Conversation, Generation
from m3.nesting import read_budget
from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


SCALES = (1, 4, 9, 36, 144, "36", "36@24", "1@12")


@pytest.mark.parametrize("scale", SCALES)
def test_answers_are_those_of_a_conversation(client: OpenAI, loaded, scale: int | str) -> None:
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
    tokens = read_budget(scale).tokens
    assert answer.usage.model_extra == {
        "visual_tokens": tokens,
        "visual_tokens_per_image": [tokens],
        "matryoshka_vis_token_scale_per_image": [read_budget(scale).setting],
    }
    assert answer.usage.completion_tokens <= 12


@pytest.mark.parametrize("scale", SCALES)
def test_a_stream_put_together_is_the_whole_answer(client: OpenAI, scale: int | str) -> None:
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


@pytest.mark.parametrize(("first", "tokens"), [(1, 1), ("9@24", 9)])
def test_several_images_at_scales_of_their_own(
    client: OpenAI, first: int | str, tokens: int
) -> None:
    parts = [
        {
            "type": "image_url",
            "image_url": {"url": data_address(png("red"))},
            "matryoshka_vis_token_scale": first,
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
    assert answer.usage.model_extra["visual_tokens_per_image"] == [tokens, 36]


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny"
    assert model.model_extra["matryoshka_vis_token_scales"] == [1, 4, 9, 16, 36, 144]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(
        NotFoundError, match="there is no model 'other' here; this server has 'tiny'"
    ):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (7, "choose one of 1, 4, 9, 16, 36, 144"),
        ("144@24", "choose one of 1, 4, 9, 36"),
        ("9@26", "choose a multiple of 4 pixels"),
        ("9@0", "a resolution is at least 1 pixel"),
        ("9@", "expected such as 36, 36@48"),
    ],
)
def test_a_scale_that_does_not_exist_lists_those_that_do(
    client: OpenAI, scale: int | str, words: str
) -> None:
    with pytest.raises(BadRequestError, match=words):
        client.chat.completions.create(
            model="tiny", messages=ask(png()), extra_body={"matryoshka_vis_token_scale": scale}
        )


def test_a_ladder_of_several_resolutions(elastic) -> None:
    """The card names it, and a request that names no scale is read at its largest resolution."""
    settings = Settings(name="tiny")
    with serving(Engine(*elastic, settings), settings) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list()
        ladder = model.model_extra["trained_scales"]
        assert ladder == ["1@24", "9@24", 9, "36@24", 36, 144]
        for scale in (*ladder, None):
            answer = client.chat.completions.create(
                model="tiny",
                messages=ask(png()),
                max_tokens=2,
                extra_body={"matryoshka_vis_token_scale": scale},
            )
            tokens = 144 if scale is None else read_budget(scale).tokens
            assert answer.usage.model_extra["visual_tokens_per_image"] == [tokens]
