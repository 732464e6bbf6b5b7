"""What only a network shows: slow clients, clients that leave, keys, a full house, metrics."""

import functools
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress

import httpx2
import pytest
from openai import AuthenticationError, OpenAI
from serving_files import PATIENCE, ask, data_address, png, wait_until

from m3.serving.http import server
from m3.serving.settings import Limits, Queue, Settings

Serve = Callable[[Settings], AbstractContextManager[str]]
CHAT = "/v1/chat/completions"
get, post = (
    functools.partial(httpx2.get, timeout=PATIENCE),
    functools.partial(httpx2.post, timeout=PATIENCE),
)
LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me all."}],
    "max_tokens": 400,
}


def metric(address: str, line: str) -> float:
    """The value of the line of /metrics that begins so; 0 where there is none."""
    found = [
        one for one in get(f"{address}/metrics").text.splitlines() if one.startswith(line + " ")
    ]
    return float(found[0].split()[-1]) if found else 0.0


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes it, which resets it where something was sent that it had not read."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def trickle(connection: socket.socket) -> None:
    """A header every now and then, for as long as the server takes them."""
    while True:
        connection.sendall(b"X: y\r\n")
        time.sleep(0.01)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    with (
        serve(Settings(name="tiny", limits=Limits(body_seconds=0.3))) as address,
        connect(address) as connection,
    ):
        connection.sendall(HEAD + b"Content-Length: 100\r\nConnection: close\r\n\r\n{")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.3 s" in answer


def test_headers_that_do_not_come_are_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with serve(Settings(name="tiny")) as address:
        with connect(address) as silent, connect(address) as trickling:
            trickling.sendall(HEAD)
            with pytest.raises(ConnectionError):  # a TimeoutError is none
                trickle(trickling)
            assert read_all(silent) == b""
            assert read_all(trickling) == b""
        assert get(f"{address}/health").status_code == 200


def test_who_does_not_read_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One asks for a page again and again and takes nothing of it."""
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.3)
    with serve(Settings(name="tiny")) as address, connect(address) as connection:
        pages = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000
        with pytest.raises(ConnectionError):  # a TimeoutError is none
            connection.sendall(pages)
        assert get(f"{address}/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(serve: Serve, chunked: bool) -> None:
    content = json.dumps(
        {"model": "tiny", "messages": ask(png())} | {"user": "x" * 100_000}
    ).encode()
    with serve(Settings(name="tiny", limits=Limits(body_bytes=50_000))) as address:
        body = iter([content[:60_000], content[60_000:]]) if chunked else content
        response = post(
            f"{address}{CHAT}", content=body, headers={"Content-Type": "application/json"}
        )
    assert response.status_code == 413
    assert "larger than this server's limit of 50,000 bytes" in response.json()["error"]["message"]


def test_all_bodies_together_are_bounded(serve: Serve) -> None:
    with serve(Settings(name="tiny", queue=Queue(held_bytes=1000))) as address:
        response = post(f"{address}{CHAT}", json=LONG | {"user": "x" * 2000})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        assert post(f"{address}{CHAT}", json=LONG | {"max_tokens": 1}).status_code == 200


def test_a_key_is_asked_for(serve: Serve) -> None:
    with serve(Settings(name="tiny", api_key="a long secret")) as address:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "a long secret"},
            {"Authorization": "Bearer"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                response = get(f"{address}{path}", headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
        assert get(f"{address}/health").status_code == 200
        with pytest.raises(AuthenticationError, match="wants its API key"):
            OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
        assert (
            OpenAI(base_url=f"{address}/v1", api_key="a long secret").models.list().data[0].id
            == "tiny"
        )
    assert "a long secret" not in repr(Settings(api_key="a long secret"))


def test_a_full_house_says_when_to_come_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six requests at a time, of which none ends before all of them are there."""
    from m3.serving.engine.preparation import Preparation

    prepare, all_there = Preparation.prepare, threading.Event()
    monkeypatch.setattr(
        Preparation, "prepare", lambda *given: all_there.wait(PATIENCE) and prepare(*given)
    )
    with serve(
        Settings(name="tiny", queue=Queue(running=1, waiting=1, retry_after_seconds=3))
    ) as address:
        with ThreadPoolExecutor(6) as threads:
            answers = [
                threads.submit(post, f"{address}{CHAT}", json=LONG | {"max_tokens": 60})
                for _ in range(6)
            ]
            wait_until(lambda: metric(address, 'm3_requests_total{outcome="overloaded"}') == 4)
            all_there.set()
            responses = [answer.result() for answer in answers]
        refused = [response for response in responses if response.status_code == 429]
        assert sorted(response.status_code for response in responses) == [200] * 2 + [429] * 4
        assert {response.headers["retry-after"] for response in refused} == {"3"}
        assert metric(address, 'm3_requests_total{outcome="overloaded"}') == len(refused)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_forgotten(serve: Serve, stream: bool) -> None:
    """The row is free long before its last token."""
    settings = Settings(name="tiny", queue=Queue(running=1), limits=Limits(new_tokens=3000))
    with serve(settings) as address:
        content = json.dumps(LONG | {"stream": stream, "max_tokens": 3000}).encode()
        with connect(address) as connection:
            connection.sendall(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            if stream:
                connection.recv(10)
            wait_until(lambda: metric(address, "m3_requests_running") == 1)
        wait_until(lambda: metric(address, 'm3_requests_total{outcome="cancelled"}') == 1)
        wait_until(lambda: metric(address, "m3_requests_running") == 0)
        assert metric(address, "m3_new_tokens_total") < 3000


def test_metrics(serve: Serve) -> None:
    with serve(Settings(name="tiny")) as address:
        image = {"type": "image_url", "image_url": {"url": data_address(png())}}
        for scale in (1, 9, 9):
            message = {"role": "user", "content": [image]}
            body = {
                "model": "tiny",
                "messages": [message],
                "max_tokens": 2,
                "matryoshka_vis_token_scale": scale,
            }
            assert post(f"{address}{CHAT}", json=body).status_code == 200
        assert get(f"{address}/v1/models/other").status_code == 404
        expected = {
            f'm3_http_responses_total{{path="{CHAT}",status="200"}}': 3,
            'm3_http_responses_total{path="other",status="404"}': 1,
            'm3_visual_tokens_total{scale="9"}': 18,
            'm3_pictures_total{scale="1"}': 1,
            'm3_first_token_seconds_count{scale="9"}': 2,
            'm3_request_seconds_count{scale="1"}': 1,
            "m3_tower_runs_total": 1,
            "m3_cache_hits_total": 2,
            "m3_cache_entries": 1,
            "m3_requests_waiting": 0,
        }
        assert {line: metric(address, line) for line in expected} == expected
        assert metric(address, "m3_prompt_tokens_total") > 19


def test_the_payload_of_mllm_npu(address: str) -> None:
    payload = {
        "input_text": "What is it?",
        "image": data_address(png()).partition(",")[2],
        "image_gen": False,
    }
    response = post(f"{address}/generate", json=payload | {"max_new_tokens": 12})
    answer, nul, rest = response.content.partition(b"\0")
    assert (nul, rest) == (b"\0", b"")
    said = json.loads(answer)
    assert said["error_code"] == 0
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    same = client.chat.completions.create(model="tiny", messages=ask(png()), max_tokens=12)
    assert said["text"] == same.choices[0].message.content


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_fails_leaves_nobody_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the server sees it at /health and starts it anew."""
    from m3.serving.engine.scheduler import Scheduler

    def broken(*_: object) -> None:
        raise RuntimeError("the model's end")

    with serve(Settings(name="tiny")) as address:
        assert get(f"{address}/health").status_code == 200
        monkeypatch.setattr(Scheduler, "turn", broken)
        with ThreadPoolExecutor(3) as threads:
            responses = list(threads.map(lambda _: post(f"{address}{CHAT}", json=LONG), range(3)))
        assert {response.status_code for response in responses} <= {500, 503}
        assert get(f"{address}/health").status_code == 503
        assert post(f"{address}{CHAT}", json=LONG).status_code == 503


def test_errors_tell_nothing_of_the_inside(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """A bug of ours: the client gets one sentence, the log the trace; neither has the image."""
    from m3.serving.engine.preparation import Preparation

    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    with serve(Settings(name="tiny")) as address:
        monkeypatch.setattr(Preparation, "prepare", broken)
        response = post(f"{address}{CHAT}", json={"model": "tiny", "messages": ask(png())})
        assert response.status_code == 500
        assert (
            response.json()["error"]["message"]
            == "the server failed on its own account; its log says why"
        )
        assert "a secret of the inside" in caplog.text
        assert data_address(png())[-40:] not in caplog.text
        monkeypatch.undo()
        assert post(f"{address}{CHAT}", json=LONG | {"max_tokens": 1}).status_code == 200
