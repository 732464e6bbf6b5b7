"""Replicas that die, are full or ill, at every place of an answer."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.types import Message

from m3.serving.cluster.retry import NoPlace, ReplicaDied, Retried
from m3.serving.http.relay import Asked
from m3.serving.settings import Limits, Settings

JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
Step = Message | type[Exception] | float
"""What a replica does next: sends a message, raises, or takes its time."""


def start(kind: bytes, status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def part(text: str, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


ANSWER = [start(JSON), part("whole")]
STREAM = [start(EVENTS), part("one ", True), part("two", True), part("", False)]
DIED = [ReplicaDied]
ILL = [start(JSON, 503), part("ill")]


class Replicas:
    """Each time somebody asks, the next one of `scripts`; the last one from then on."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts, self.asked = list(scripts), []

    async def ask(self, asked: Asked) -> AsyncGenerator[Message]:
        self.asked.append(asked)
        for step in self.scripts[min(len(self.asked), len(self.scripts)) - 1]:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, dict):
                yield step
            else:
                raise step


class Answered:
    """What a client gets, and what was counted."""

    def __init__(self, replicas: Replicas, seconds: float = 120.0) -> None:
        counters = [
            Counter(name, name, ["model"], registry=CollectorRegistry())
            for name in ("retried", "ended")
        ]
        app = Retried("m", replicas.ask, Settings(limits=Limits(seconds=seconds)), 2, *counters)
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}"}

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(app(Asked("POST", "/generate").scope, receive, send))
        self.status, self.headers = sent[0]["status"], dict(sent[0]["headers"])
        self.text = b"".join(message["body"] for message in sent[1:]).decode()
        self.retried, self.interrupted = (
            int(counter.labels("m")._value.get()) for counter in counters
        )


@pytest.mark.parametrize("answer", [ANSWER, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("before", "retried"),
    [
        ([], 0),
        ([DIED], 1),
        ([DIED, DIED], 2),
        # the start was there, but is sent with the first part only
        ([[start(EVENTS), ReplicaDied]], 1),
        ([ILL, ILL, DIED, ILL], 1),
        ([DIED, [NoPlace]], 1),  # it was accepted once: no 429 any more
        ([ILL, [NoPlace]], 0),
    ],
)
def test_a_request_is_asked_again_until_its_first_byte(
    before: list[list[Step]], retried: int, answer: list[Step]
) -> None:
    replicas = Replicas(*before, answer)
    got = Answered(replicas)
    assert (got.status, got.text) == (200, "whole" if answer is ANSWER else "one two")
    assert (got.retried, got.interrupted) == (retried, 0)
    assert len(replicas.asked) == len(before) + 1
    assert {asked.body for asked in replicas.asked} == {b"{}"}


def test_a_stream_that_had_begun_ends_with_an_error_event() -> None:
    got = Answered(Replicas([*STREAM[:3], ReplicaDied], ANSWER))
    assert got.text.startswith("one two")
    event = json.loads(got.text.removeprefix("one two").removeprefix("data: "))
    assert event["error"]["code"] == "replica_died"
    assert "not the whole answer: ask again" in event["error"]["message"]
    assert (got.retried, got.interrupted) == (0, 1)


def test_a_death_after_the_last_byte_is_nobody_s_business() -> None:
    got = Answered(Replicas([*ANSWER, ReplicaDied]))
    assert (got.status, got.text, got.interrupted) == (200, "whole", 0)


def test_a_request_that_may_be_what_kills_replicas_is_given_up() -> None:
    replicas = Replicas(DIED)
    got = Answered(replicas)
    assert got.status == 500
    assert "3 replicas died with this request" in got.text
    assert len(replicas.asked) == 3


def test_full_queues_are_429() -> None:
    got = Answered(Replicas([NoPlace]))
    assert (got.status, got.headers[b"retry-after"]) == (429, b"2")
    assert json.loads(got.text)["error"]["code"] == "overloaded"


@pytest.mark.parametrize("script", [ILL, [60.0, *ANSWER]], ids=["ill", "nobody there"])
def test_without_a_replica_there_is_an_end(script: list[Step]) -> None:
    got = Answered(Replicas(script), seconds=0.2)
    assert (got.status, got.headers[b"retry-after"]) == (503, b"2")
    assert "no replica of the model answered within 0.4 s" in got.text
