"""One place of a right request broken at a time: a 4xx with one sentence that names that place."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from serving_files import PATIENCE, ask, data_address, png

CHAT = "/v1/chat/completions"
PYTHON_NAMES = re.compile(
    r"constrained|tagged|union|\blist\[|\bdict\b|dictionar|\bstr\b|\bint\b|\bbool\b|\bfloat\b|NoneType|None\b|"
    r"TypeError|ValueError|Exception|Error\b|pydantic|Traceback|\.py\b|<class|Input should|Field required|"
    r"[A-Z][a-z]+(Part|Message|Request)\b|b'|\bTrue\b|\bFalse\b"
)
"""Words of the implementation."""
TRAINING_ADVICE = re.compile(
    r"train a|from the data|data folder|recipe|parquet|m3 data|Shrink|max_pixels"
)
SECOND_FINDING = re.compile(r"; [\w.]+(: | is missing)")
PICTURE = {"type": "image_url", "image_url": {"url": data_address(png())}}
BASE: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be brief."},
        *ask(png(), png("blue"), png("green")),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ],
    "max_tokens": 2,
    "temperature": 0,
    "top_p": 1,
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "matryoshka_vis_token_scale": 9,
}
Steps = tuple[str | int, ...]
DAMAGED = data_address(png()[:60])
NO_PICTURE = data_address(b"<html>404</html>")
IMAGE_2 = ("messages", 1, "content", 1)


@dataclass(frozen=True)
class Mistake:
    """`value` at `place`; `words`: of the sentence; `parent`: `param` may be so many steps shorter."""

    place: Steps
    value: Any
    words: str
    parent: int = 0
    status: int = 400

    def body(self) -> dict[str, Any]:
        body = copy.deepcopy(BASE)
        holder: Any = body
        for step in self.place[:-1]:
            holder = holder[step]
        if self.value is REMOVED:
            del holder[self.place[-1]]
        else:
            holder[self.place[-1]] = self.value
        return body


REMOVED = object()


def mistakes() -> Iterator[Mistake]:
    message, parts, text = (
        ("messages", 1),
        ("messages", 1, "content"),
        ("messages", 1, "content", 3),
    )
    # missing
    yield Mistake(("model",), REMOVED, "is missing: expected the model's name")
    yield Mistake(("messages",), REMOVED, "is missing: expected a list of messages")
    yield Mistake((*message, "role"), REMOVED, 'is missing: expected "system", "developer"')
    yield Mistake(parts, REMOVED, "is missing: expected a text or a list of parts")
    yield Mistake((*text, "text"), REMOVED, "is missing: expected a text")
    yield Mistake((*text, "type"), REMOVED, 'is missing: expected "text", "image_url" or')
    yield Mistake((*IMAGE_2, "image_url"), REMOVED, 'is missing: expected {"url": "data:')
    yield Mistake(
        (*IMAGE_2, "image_url", "url"), REMOVED, "is missing: expected an address such as"
    )
    # of a wrong kind
    kinds: dict[Steps, tuple[str, list[Any]]] = {
        ("model",): ("expected the model's name, got", [5, ["tiny"], {"name": "tiny"}, True]),
        ("messages",): ("expected a list of messages", ["hi", {"role": "user"}, 5]),
        message: ("expected a message such as", ["hi", 5, None]),
        (*message, "role"): ('expected "system", "developer"', ["robot", 5]),
        parts: ("expected a text or a list of parts, got", [5, True, {"type": "text"}]),
        text: ("expected a part such as", ["hi", 5, None]),
        (*text, "type"): (
            'expected "text", "image_url" or "video_url", got',
            ["image", "input_text"],
        ),
        (*text, "text"): ("expected a text, got", [5, ["hi"], {}]),
        (*IMAGE_2, "image_url"): ('expected {"url": "data:', [5, ["data:"]]),
        (*IMAGE_2, "image_url", "url"): ("expected an address such as", [5, {}]),
        (*IMAGE_2, "image_url", "detail"): ('expected "low", "high"', ["medium", 5]),
        ("max_tokens",): ("expected a whole number, 1 or more, got", [0, -1, 1.5, "many"]),
        ("temperature",): ("expected a number from 0 to 2, got", [-1, 3, "hot"]),
        ("top_p",): ("expected a number above 0 and up to 1, got", [0, 2, "p"]),
        ("seed",): ("expected a whole number of 64 bits, got", [2**64, 1.5, "x"]),
        ("stop",): ("expected a text of 1 to 200 characters, or a list", [5, "", ["a"] * 5, {}]),
        ("stop", 0): ("expected a text of 1 to 200 characters, got", [5, ""]),
        ("stream",): ("expected true or false, got", ["yes", 1]),
        ("matryoshka_vis_token_scale",): (
            "expected visual tokens such as 36",
            [[9], {}, True, "many"],
        ),
        ("mm_processor_kwargs",): ('expected {"matryoshka_vis_token_scale": 36}', [5, "9"]),
        ("stream_options",): ('expected {"include_usage": true}', [5]),
    }
    for place, (words, values) in kinds.items():
        yield from (Mistake(place, value, words) for value in values)
    # what this server cannot do
    for field, value in {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "functions": [{"name": "f"}],
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"50256": -100},
        "top_k": 50,
        "min_p": 0.1,
        "ignore_eos": True,
        "best_of": 3,
        "reasoning_effort": "high",
        "audio": {"voice": "alloy"},
        "modalities": ["text", "audio"],
        "web_search_options": {},
        "echo": True,
    }.items():
        yield Mistake((field,), value, "this server cannot ")
    yield Mistake(("messages", 2, "tool_calls"), [{"id": "1"}], "this server cannot call tools")
    yield Mistake((*message, "role"), "tool", "this server cannot call tools")
    # unknown, or in the wrong place
    yield Mistake(("max_token",), 5, "does not know this field; did you mean max_tokens?")
    yield Mistake((*text, "txt"), 5, "does not know this field")
    yield Mistake((*text, "temperature"), 5, "does not know this field here")
    yield Mistake(("extra_body",), {}, "stands beside messages")
    yield Mistake(message, PICTURE, "role is missing", parent=-1)
    yield Mistake((*IMAGE_2, "image_url", "uri"), "x", "does not know this field")
    for place in (("messages", 0, "content"), ("messages", 2, "content")):
        yield Mistake((*place,), [PICTURE], "images and videos belong in a message", parent=-1)
    # files and addresses
    for url, words in (
        (DAMAGED, "is damaged or cut short"),
        (NO_PICTURE, "not an image in a known format"),
        ("data:image/png;base64,", "the file is empty"),
        ("data:image/png;base64,%%%", "the content is not valid base64"),
        ("data:image/png,abc", "expected 'data:<type>;base64,<content>'"),
        ("photo.png", "this server opens no files"),
        ("https://example.org/a.png", "is not among the hosts"),
    ):
        yield Mistake((*IMAGE_2, "image_url", "url"), url, words, parent=2)
    yield Mistake((*IMAGE_2, "image_url"), NO_PICTURE, "not an image in a known format", parent=1)
    # scales
    yield Mistake(("matryoshka_vis_token_scale",), 7, "choose one of 1, 4, 9")
    yield Mistake(("matryoshka_vis_token_scale",), "9@26", "choose a multiple of 4 pixels")
    yield Mistake(("matryoshka_vis_token_scale",), "auto", "this model has no router")
    yield Mistake((*IMAGE_2, "matryoshka_vis_token_scale"), 7, "choose one of 1, 4, 9")
    yield Mistake((*IMAGE_2, "matryoshka_vis_token_scale"), [9], "expected visual tokens such as")
    # the rest
    yield Mistake(("model",), "other", "there is no model 'other' here", status=404)
    yield Mistake(("model",), "tiny@many", "there is no model 'tiny@many' here", status=404)
    yield Mistake((*text, "text"), "word " * 20_000, "shorten the text|smaller scale", parent=4)
    yield Mistake((*text, "text"), "x" * 300_000, "characters of text", parent=4)
    yield Mistake(("max_completion_tokens",), 3, "not both", parent=-2)
    yield Mistake(("stream_options",), {"include_usage": True}, "set stream")
    yield Mistake(("continue_final_message",), True, "an assistant's message")


MISTAKES = list(mistakes())


@pytest.fixture(scope="module")
def client(address: str):
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        yield client


def check_words(message: str) -> None:
    """Written for a person, about what that person wrote."""
    assert not PYTHON_NAMES.search(message), message
    assert not TRAINING_ADVICE.search(message), message
    assert 10 < len(message) < 600, message


def test_there_are_many_mistakes() -> None:
    assert len(MISTAKES) > 90


def test_the_right_request_is_answered(client: httpx2.Client) -> None:
    assert client.post(CHAT, json=BASE).status_code == 200


@pytest.mark.parametrize(
    "mistake",
    MISTAKES,
    ids=lambda mistake: f"{'.'.join(map(str, mistake.place))}-{mistake.words[:30]}",
)
def test_a_mistake_is_told_once_with_its_place(client: httpx2.Client, mistake: Mistake) -> None:
    response = client.post(CHAT, json=mistake.body())
    assert response.status_code == mistake.status, response.text
    error = response.json()["error"]
    message, param = error["message"], error["param"]
    print(f"{mistake.status} {param}\n    {message}")  # pytest -s: to be read
    check_words(message)
    assert re.search(mistake.words, message) or mistake.words in message, message
    assert error["code"] and error["type"]
    place = [str(step) for step in mistake.place]
    if mistake.parent < 0:
        assert param.startswith(place[0]) or param == "max_tokens"
    else:
        assert param == ".".join(place[: len(place) - mistake.parent])
    assert not SECOND_FINDING.search(message), message


def test_several_mistakes_are_told_together(client: httpx2.Client) -> None:
    body = copy.deepcopy(BASE) | {"temperature": "hot", "tools": [{}]}
    body["messages"][1]["content"][3]["text"] = 5
    error = client.post(CHAT, json=body).json()["error"]
    check_words(error["message"])
    for place in ("temperature", "tools", "messages.1.content.3.text"):
        assert f"{place}: " in error["message"]
    assert error["message"].count("; ") == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected a JSON object such as {.*} as the body, got nothing"),
        (b"null", "expected a JSON object such as {.*} as the body, got null"),
        (b"[]", r"as the body, got \[\]"),
        (b"[1, 2]", r"as the body, got \[1, 2\]"),
        (b'"hi"', 'as the body, got "hi"'),
        (b"5", "as the body, got 5"),
        (b"{", "not JSON at line 1, column 2"),
        (b'{"model": "tiny",\n "messages": [}', "not JSON at line 2, column 15"),
        (b"{'model': 'tiny'}", "not JSON at line 1, column 2"),
        (b'{"model": "tiny",}', "not JSON at line 1, column 1[78]"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/generate"])
def test_a_body_that_is_no_object(
    client: httpx2.Client, path: str, content: bytes, words: str
) -> None:
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] is None
    assert re.search(words, error["message"]), error["message"]
    check_words(error["message"])


def test_values_are_shortened(client: httpx2.Client) -> None:
    for value in ("x" * 10**6, ["x" * 10**6], {"x" * 10**6: 1}, list(range(9000)), 10**400):
        error = client.post(CHAT, json=BASE | {"temperature": value}).json()["error"]
        assert error["param"] == "temperature"
        check_words(error["message"])


def test_only_the_first_of_very_many_are_told(client: httpx2.Client) -> None:
    messages = [{"role": "robot", "content": n} for n in range(1000)]
    error = client.post(
        CHAT,
        content=json.dumps(BASE | {"messages": messages}).encode(),
        headers={"Content-Type": "application/json"},
    ).json()["error"]
    assert error["message"].endswith("(and 995 more)")
    assert error["param"] == "messages.0.role"
