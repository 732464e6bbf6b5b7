"""Automatic budgets over HTTP: asked for a request or a picture, reported, refused in words."""

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from openai import OpenAI
from serving_files import PATIENCE, ask, data_address, png, serving

from m3.serving.engine.engine import Engine
from m3.serving.settings import Settings

post = functools.partial(httpx2.post, timeout=PATIENCE)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def address(routed) -> Iterator[str]:
    settings = Settings(name="tiny")
    with serving(Engine(*routed, settings), settings) as address:
        yield address


@pytest.fixture(scope="module")
def plain_address(elastic) -> Iterator[str]:
    """A model without a router."""
    settings = Settings(name="tiny")
    with serving(Engine(*elastic, settings), settings) as address:
        yield address


def part(colour: str, scale=None) -> dict:
    shown = {"type": "image_url", "image_url": {"url": data_address(png(colour))}}
    return shown if scale is None else shown | {"matryoshka_vis_token_scale": scale}


def body(*parts: dict, scale=None, **options) -> dict:
    content = [*parts, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    asked = {"model": "tiny", "messages": messages, "max_tokens": 8} | options
    return asked if scale is None else asked | {"matryoshka_vis_token_scale": scale}


def report(address: str, content: dict) -> tuple[str, dict]:
    response = post(f"{address}{CHAT}", json=content)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["content"], answer["usage"]


def test_usage_names_what_was_chosen_and_by_hand_it_is_the_same(address: str) -> None:
    text, usage = report(address, body(part("red"), part("blue", 9), scale="auto"))
    chosen = usage["matryoshka_vis_token_scale_per_image"]
    assert chosen[1] == 9
    tokens = [int(str(scale).split("@")[0]) for scale in chosen]
    assert usage["visual_tokens_per_image"] == tokens
    by_hand = body(part("red", chosen[0]), part("blue", chosen[1]))
    assert report(address, by_hand) == (text, usage)


def test_settings_are_mixed_in_one_request_and_many_at_once(address: str) -> None:
    settings = [(" auto ", "auto:rule"), ("auto:0.8", "36@24"), ("auto:1", "144+1"), (4, "auto")]
    asked = [body(*(part(c, s) for c, s in zip(("red", "blue"), pair, strict=True)))
             for pair in settings * 3]  # fmt: skip
    with ThreadPoolExecutor(12) as threads:
        reports = list(threads.map(functools.partial(report, address), asked))
    for content, (text, usage) in zip(asked, reports, strict=True):
        scales = usage["matryoshka_vis_token_scale_per_image"]
        by_hand = body(*(part(c, s) for c, s in zip(("red", "blue"), scales, strict=True)))
        assert report(address, by_hand) == (text, usage), content
    assert reports[0][1]["matryoshka_vis_token_scale_per_image"][1] == 144
    assert reports[1][1]["matryoshka_vis_token_scale_per_image"] == ["1@24", "36@24"]


def test_the_last_chunk_names_what_was_chosen(address: str) -> None:
    content = body(part("green"), scale="auto")
    text, usage = report(address, content)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    lines = post(f"{address}{CHAT}", json=content | stream).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
    assert "".join(filter(None, pieces)) == text
    assert chunks[-1]["usage"] == usage


def test_the_official_client_reads_it(address: str) -> None:
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="tiny",
        messages=ask(png()),  # pyright: ignore[reportArgumentType]
        max_tokens=2,
        extra_body={"matryoshka_vis_token_scale": "auto:0.8"},
    )
    assert answer.usage is not None
    extra = answer.usage.model_extra
    assert extra is not None and extra["matryoshka_vis_token_scale_per_image"] == ["1@24"]


def test_the_payload_of_mllm_npu_takes_it(address: str) -> None:
    picture = data_address(png()).partition(",")[2]
    payload = {"input_text": "What is it?", "image": picture, "max_new_tokens": 8}
    text, _ = report(address, body(part("red"), scale="1@24"))
    automatic = payload | {"matryoshka_vis_token_scale": "auto:0.8"}
    flipped = post(f"{address}/generate", json=automatic).content.rstrip(b"\0")
    fixed = payload | {"matryoshka_vis_token_scale": "1@24"}
    assert json.loads(flipped) == json.loads(
        post(f"{address}/generate", json=fixed).content.rstrip(b"\0")
    )
    assert text


def test_models_say_what_they_offer(address: str, plain_address: str) -> None:
    offered = [
        httpx2.get(f"{where}/v1/models").json()["data"][0]["automatic_scales"]
        for where in (address, plain_address)
    ]
    assert offered == [["auto", "auto:rule"], ["auto:rule"]]


@pytest.mark.parametrize("per_picture", [True, False])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("scale", "is_plain", "words"),
    [
        ("auto", True, "this model has no router to choose budgets: give a number of visual"),
        ("auto:0.5", False, "auto:0.5 is outside what this router was calibrated for: 0.8 to 1"),
        ("auto:2", False, "expected 0 to 1, such as auto:0.95"),
        ("auto:size", False, "matryoshka_vis_token_scale"),
    ],
)
def test_a_choice_that_cannot_be_made_is_a_400(
    address: str, plain_address: str, per_picture, stream, scale: str, is_plain: bool, words: str
) -> None:
    content = body(part("red", scale)) if per_picture else body(part("red"), scale=scale)
    where = plain_address if is_plain else address
    response = post(f"{where}{CHAT}", json=content | {"stream": stream})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_the_rule_needs_no_router(plain_address: str) -> None:
    small = {"type": "image_url", "image_url": {"url": data_address(png(size=(20, 24)))}}
    _, usage = report(plain_address, body(small, part("red"), scale="auto:rule"))
    assert usage["matryoshka_vis_token_scale_per_image"] == ["36@24", 144]
