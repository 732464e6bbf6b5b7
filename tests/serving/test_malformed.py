"""Requests that are wrong in every way we could think of: a 4xx with a message, never a 5xx, a
trace or a hang.
"""

import io
import json
import re
import struct
import zlib
from typing import Any

import httpx2
import pytest
from PIL import Image
from serving_files import PATIENCE, ask, data_address, png

from m3.serving.http.schema import ChatRequest

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(address: str):
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        yield client


def check(response: httpx2.Response, status: int | None = None) -> str:
    """The message of an error in OpenAI's format."""
    assert 400 <= response.status_code < 500, response.text
    assert status in (None, response.status_code), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert len(error["message"]) < 2000
    for leak in ("Traceback", "site-packages", ".py", "/work"):
        assert leak not in error["message"]
    return error["message"]


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ask(png()), "max_tokens": 2} | changes


def shows(address: str, **part: Any) -> dict[str, Any]:
    return body(
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": address}} | part],
            }
        ]
    )


def image_file(kind: str, size: tuple[int, int] = (60, 40), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, and would unpack to that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * min((width + 1) * height, 10_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


NUMBERS = [0, -1, 1.5, 10**30, "many", None, True, [], {}, "NaN"]
WRONG_FIELDS: list[dict[str, Any]] = [
    *({"messages": value} for value in ([], {}, None, "hi", [None], [[]], ["hi"], [{}], 5)),
    *(
        {"messages": [{"role": role, "content": "hi"}]}
        for role in ("robot", "tool", "function", "", None, 5, ["user"])
    ),
    *(
        {"messages": [{"role": "user", "content": value}]}
        for value in (None, 5, [], [None], {}, [[]], [{"type": "audio"}])
    ),
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": "hi", "tool_calls": [{}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]},
    {"messages": [{"role": "system", "content": ask(png())[0]["content"]}]},
    {"messages": [{"role": "assistant", "content": ask(png())[0]["content"]}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "user", "content": "hi"}] * 200},
    {"messages": [{"role": "user", "content": "x" * 300_000}]},
    {"messages": [{"role": "user", "content": "five words of some length " * 7000}]},
    *({"model": value} for value in ("", "other", None, 5, [], "../../etc/passwd", "x" * 10**6)),
    *({"max_tokens": value} for value in (*NUMBERS[:3], "many", [], {})),
    *({"max_completion_tokens": 3, "max_tokens": value} for value in (3, 4)),
    *({"temperature": value} for value in (-0.1, 2.1, "hot", [], 10**400)),
    *({"top_p": value} for value in (0, 1.1, -1, "p")),
    *({"seed": value} for value in (2**63, -(2**63) - 1, 1.5, "x")),
    *({"stop": value} for value in ("", [""], ["a"] * 5, 5, {}, ["a" * 500])),
    *({"stream": value} for value in (5, "maybe", [])),
    *({"stream_options": value} for value in (5, {"include_usage": 5}, {"other": 1})),
    *({"n": value} for value in (0, 9, "1", True)),
    {"messages": [{"role": "x" * 10**6, "content": "hi"}]},
    {"messages": [{"role": "\ud800", "content": "hi"}]},
    {"k" * 10**6: 1},
    {"\ud800": 1},
    {"stream_options": {"include_usage": True}},
    *({field: 0.5} for field in ("frequency_penalty", "presence_penalty")),
    *({field: {}} for field in ("function_call", "audio", "prediction", "web_search_options")),
    *({field: [{"type": "function"}]} for field in ("tools", "functions")),
    {"logit_bias": {"5": 1}},
    {"logprobs": 1},
    {"logprobs": True, "top_logprobs": 21},
    {"top_logprobs": 5},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "xml"}},
    {"modalities": ["text", "audio"]},
    {"reasoning_effort": "high"},
    {"unheard_of": 1},
    *(
        {"matryoshka_vis_token_scale": value}
        for value in (0, -1, 7, 145, 577, 10**9, 10**30, 1.5, True, [9], {}, "")
    ),
    *(
        {"matryoshka_vis_token_scale": value}
        for value in ("many", "9x", "9+", "+9", "9x9x9", "9" * 5000, "7", "1x0", "x")
    ),
    *(
        {"matryoshka_vis_token_scale": value}
        for value in ("9" * 100, "7+1", "7x3+1", "auto", "auto:2", "auto:x")
    ),
]


@pytest.mark.parametrize("changes", WRONG_FIELDS, ids=lambda changes: str(changes)[:60])
def test_wrong_fields(client: httpx2.Client, changes: dict[str, Any]) -> None:
    content = json.dumps(body(**changes)).encode()
    check(client.post(CHAT, content=content, headers={"Content-Type": "application/json"}))


NOT_DONE = [
    ("tools", [{"type": "function"}], "this server cannot call tools"),
    ("top_logprobs", 2, "this is for answers with log-probabilities"),
    ("response_format", {"type": "xml"}, 'expected .*, got "xml"'),
    ("n", 9, "the request asks for 9 answers, more than this server's limit of 8"),
    ("frequency_penalty", 0.5, "this server cannot penalise repetition"),
    ("matryoshka_vis_token_scale", [1, 9], "expected visual tokens such as 36, .* image_url"),
    ("matryoshka_vis_token_scale", 9.5, "expected visual tokens such as 36, .* got 9.5"),
    ("frobnicate", 1, "this server does not know this field"),
    ("max_token", 1, "this server does not know this field; did you mean max_tokens?"),
]


@pytest.mark.parametrize(("field", "value", "words"), NOT_DONE)
def test_what_is_not_done_is_said(
    client: httpx2.Client, field: str, value: Any, words: str
) -> None:
    assert re.search(
        f"^{field}.*: {words}", check(client.post(CHAT, json=body(**{field: value})), 400)
    )


def test_fields_that_ask_for_nothing_are_taken(client: httpx2.Client) -> None:
    """Many clients send all fields they know."""
    fields = [
        name
        for name, one in ChatRequest.model_fields.items()
        if not one.is_required() and name != "max_tokens"
    ]
    assert len(fields) > 30
    assert client.post(CHAT, json=body(**dict.fromkeys(fields))).status_code == 200


MANY = [
    b'{"messages": [' + b"0," * 100_000 + b"0]}",
    b"{" + b",".join(b'"a%d":0' % n for n in range(100_000)) + b"}",
    b'{"metadata": {' + b",".join(b'"a%d":0' % n for n in range(100_000)) + b"}}",
    b'{"a":' * 100_000,
    b'{"a": "' + rb"\"" * 100_000 + b"," * 20_000,
]


@pytest.mark.parametrize("content", MANY, ids=lambda content: repr(content[:30]))
def test_more_values_than_can_be_told_of(client: httpx2.Client, content: bytes) -> None:
    check(client.post(CHAT, content=content, headers={"Content-Type": "application/json"}))


def test_commas_in_a_text_are_no_values(client: httpx2.Client) -> None:
    message = check(
        client.post(CHAT, json=body(messages=[{"role": "user", "content": ',"' * 20_000}])), 400
    )
    assert "tokens" in message


WRONG_ADDRESSES = [
    "",
    "photo.png",
    "/etc/passwd",
    "../../../etc/passwd",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://localhost/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\server\\share",
    "ftp://example.org/a.png",
    "gopher://127.0.0.1:6379/_INFO",
    "javascript:alert(1)",
    "http://",
    "http://[",
    "http://127.0.0.1/a.png",
    "http://localhost:22/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/a.png",
    "http://[::ffff:127.0.0.1]/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://017700000001/",
    "http://127.1/",
    "http://0/",
    "https://example.org/a.png",
    "http://user@example.org/",
    "http://example.org:99999/",
    "http://exämple.org/",
    "http://example.org\r\nHost: x/",
    "data:",
    "data:,",
    "data:image/png,abc",
    "data:image/png;base64",
    "data:image/png;base64,",
    "data:image/png;base64,%%%",
    "data:image/png;base64,aGk",
    "data:image/png;base64,äöü",
    "data:text/html;base64,PGgxPmhpPC9oMT4=",
    "data:image/svg+xml;base64,PHN2Zy8+",
    "data:image/png;base64,iVBORw0KGgo=",
    "iVBORw0KGgo=",
    "\0",
    "x" * 10**6,
]


@pytest.mark.parametrize("address_", WRONG_ADDRESSES, ids=lambda address: repr(address[:60]))
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_wrong_addresses(client: httpx2.Client, kind: str, address_: str) -> None:
    part = {"type": kind, kind: {"url": address_}}
    message = check(client.post(CHAT, json=body(messages=[{"role": "user", "content": [part]}])))
    assert "root:" not in message


FILES: dict[str, bytes] = {
    "30000 x 30000": bomb(30_000, 30_000),
    "2^31 x 2^31": bomb(2**31 - 1, 2**31 - 1),
    "a strip": bomb(40_000_000, 1),
    "no pixels": bomb(0, 0),
    "nothing": b"",
    "noise": bytes(range(256)) * 40,
    "text": b"hello",
    "html": b"<html><img src=x></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(x) run\n",
    "zip": b"PK\3\4" + b"\0" * 100,
    "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    **{
        f"cut {kind} at {part}": image_file(kind)[: int(len(image_file(kind)) * part)]
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
        for part in (0.05, 0.5)
    },
}


HALF_A_GIF = ("video_url", "cut GIF at 0.5")
"""ffmpeg shows the half there is."""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("image_url", "video_url")
        for name in FILES
        if (kind, name) != HALF_A_GIF
    ],
)
def test_wrong_files(client: httpx2.Client, kind: str, name: str) -> None:
    part = {"type": kind, kind: {"url": data_address(FILES[name])}}
    check(client.post(CHAT, json=body(messages=[{"role": "user", "content": [part]}])), 400)


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b"\xff\xfe",
    b"{}",
    b'{"model": "tiny"',
    b"[" * 100_000,
    b'{"a":' * 9_000,
    b'{"messages": ' + b"9" * 100_000 + b"}",
    b'{"temperature": NaN}',
    b'{"temperature": Infinity, "model": "tiny", "messages": [{"role": "user", "content": "hi"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1e400}',
    b"\0" * 1000,
    b"model=tiny&messages=hi",
]


@pytest.mark.parametrize("path", [CHAT, "/generate"])
@pytest.mark.parametrize("content", BODIES, ids=lambda content: repr(content[:40]))
def test_bodies_that_are_no_request(client: httpx2.Client, path: str, content: bytes) -> None:
    check(client.post(path, content=content, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"],
)
def test_other_kinds_of_content(client: httpx2.Client, kind: str) -> None:
    check(client.post(CHAT, content=b"{}", headers={"Content-Type": kind}), 415)


NPU = [
    {},
    {"input_text": 5},
    {"input_text": "hi", "image": "no base64!"},
    {"input_text": "hi", "image": "aGk="},
    {"input_text": "hi", "image": "/etc/passwd"},
    {"input_text": "hi", "image_gen": True},
    {"input_text": "hi", "model": "other"},
    {"input_text": "hi", "other": 1},
]


@pytest.mark.parametrize("content", NPU, ids=str)
def test_wrong_payloads_of_mllm_npu(client: httpx2.Client, content: dict[str, Any]) -> None:
    check(client.post("/generate", json=content))


PATHS = [
    "/",
    "/v1",
    "/v1/embeddings",
    "/v1/models/../../etc/passwd",
    "/v1/models/%2e%2e%2fetc%2fpasswd",
    "/..%2f..%2fetc/passwd",
]
PATHS += [
    "/static/../../../etc/passwd",
    "//etc/passwd",
    "/%00",
    "/metrics/..;/",
    "/docs/../api.py",
    "/docs",  # FastAPI's, which takes its scripts from elsewhere
    "/redoc",
    "/v1/models/" + "x" * 5000,
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_nowhere(client: httpx2.Client, path: str) -> None:
    response = client.get(path)
    check(response, 404)
    assert "root:" not in response.text


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/models"), ("POST", "/health")],
)
def test_other_methods(client: httpx2.Client, method: str, path: str) -> None:
    check(client.request(method, path), 405)
