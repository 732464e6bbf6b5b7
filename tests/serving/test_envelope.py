"""What every answer has and every request may look like: ids, HEAD, slashes, chunks, pauses."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx2
import pytest
from openai import OpenAI
from serving_files import PATIENCE, ask, png

from m3.serving.engine.metrics import LATE_SECONDS, Pace
from m3.serving.settings import Settings

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": ask(png()), "max_tokens": 4}
NEW_ID = re.compile(r"req_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def http(address: str):
    with httpx2.Client(base_url=address, timeout=PATIENCE, follow_redirects=False) as client:
        yield client


def test_every_answer_has_an_id(http: httpx2.Client, address: str) -> None:
    answers = [
        http.get("/health"),
        http.get("/nothing"),
        http.post(CHAT, json=BODY),
        http.post(CHAT, json={}),
        http.post(CHAT, content=b"x"),
        http.post(CHAT, json=BODY | {"stream": True}),
        http.put(CHAT),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(NEW_ID.fullmatch(one) for one in ids)
    assert len(set(ids)) == len(ids)
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    reply = client.chat.completions.create(model="tiny", messages=ask(png()), max_tokens=1)
    assert NEW_ID.fullmatch(reply._request_id or "")


def test_a_failure_of_ours_has_an_id_too(
    serve: Callable[[Settings], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3.serving.engine.engine import Engine

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with serve(Settings(name="tiny")) as address:
        monkeypatch.setattr(Engine, "submit", broken)
        response = httpx2.post(
            f"{address}{CHAT}", json=BODY, timeout=PATIENCE, headers={"X-Request-Id": "mine"}
        )
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("sent", ["trace-1", "a" * 128, "0af7651916cd43dd8448eb211c80319c"])
def test_the_callers_id_is_given_back(http: httpx2.Client, sent: str) -> None:
    assert http.get("/health", headers={"X-Request-Id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["a" * 129, "", "a b", "<script>", "a\tb", "\x1b[31m"])
def test_an_id_that_is_none_is_not_given_back(http: httpx2.Client, sent: str) -> None:
    headers = [(b"x-request-id", sent.encode())]
    try:
        answer = http.get("/health", headers=headers)
    except httpx2.LocalProtocolError:
        pytest.skip("the client does not send it")
    assert answer.status_code == 400 or NEW_ID.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny", "/openapi.json"])
def test_head_is_get_without_a_body(http: httpx2.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_what_is_posted(http: httpx2.Client) -> None:
    assert http.head(CHAT).status_code == 405
    assert http.head("/nothing").status_code == 404


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny", "/metrics"])
def test_a_slash_at_the_end_is_no_other_place(http: httpx2.Client, path: str) -> None:
    assert http.get(f"{path}/").status_code == 200
    assert http.head(f"{path}/").status_code == 200


def test_a_slash_behind_a_chat(http: httpx2.Client) -> None:
    plain, slashed = http.post(CHAT, json=BODY), http.post(f"{CHAT}/", json=BODY)
    assert slashed.status_code == 200
    assert slashed.json()["choices"] == plain.json()["choices"]
    wrong_kind = {"Content-Type": "text/plain"}
    assert http.post(f"{CHAT}/", content=b"{}", headers=wrong_kind).status_code == 415


@pytest.mark.parametrize("with_usage", [False, True])
def test_chunks_leave_out_what_is_not_set(http: httpx2.Client, with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    response = http.post(CHAT, json=BODY | {"stream": True} | options)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    usage = chunks.pop()["usage"] if with_usage else None
    assert (usage is not None) == with_usage
    assert len(chunks) > 2
    common = {"id", "object", "created", "model", "choices"}
    for number, chunk in enumerate(chunks):
        assert set(chunk) == common
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "delta", "finish_reason"}
        assert (choice["finish_reason"] is None) == (number < len(chunks) - 1)
        assert None not in choice["delta"].values()
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in chunks[1:-1])
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_the_pace_of_late() -> None:
    pace = Pace()
    assert pace.seconds(10, moment=0.0) == 0.0
    for end in range(1, 11):
        pace.count(float(2 * end))
    assert pace.seconds(10, moment=22.0) == pytest.approx(20.0)
    assert pace.seconds(5, moment=22.0) == pytest.approx(10.0)
    assert pace.seconds(10, moment=20.0 + 2 * LATE_SECONDS) == 0.0


def test_who_comes_again_is_told_of_the_queue(serve: Callable, monkeypatch) -> None:
    """`retry_after_seconds` at least; more where the queue takes longer."""
    from m3.serving.engine.engine import Engine
    from m3.serving.engine.requests import Busy, Request, Turn
    from m3.serving.settings import Queue

    seen: list[Engine] = []
    submit = Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, *given: seen.append(self) or submit(self, *given)
    )
    with serve(Settings(name="tiny", queue=Queue(running=1, waiting=7))) as address:
        assert httpx2.post(f"{address}{CHAT}", json=BODY, timeout=PATIENCE).status_code == 200
        (engine,) = set(seen)
        monkeypatch.setattr(engine, "places", 1)
        waits = []
        for waiting, pace in ((1, 0.5), (8, 2.5)):
            monkeypatch.setattr(Pace, "seconds", lambda self, n, moment, pace=pace: n * pace)
            monkeypatch.setattr(engine, "_accepted", {object() for _ in range(waiting)})
            try:
                with pytest.raises(Busy) as refused:
                    engine.submit(Request((Turn("user", ("hi",)),)), print)
            finally:  # the server waits for all of them when it ends
                monkeypatch.setattr(engine, "_accepted", set())
            waits.append(refused.value.retry_after_seconds)
        assert waits == [2, 10]
