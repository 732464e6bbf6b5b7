"""One model behind several replicas: a request whose replica dies goes to another one, until the
first byte of its answer is out.

In: ASGI requests. Out: the answer of whichever replica gave it.

    all queues are full                      429 with Retry-After
    the replica dies, nothing was sent       again, on another replica; at most `retries` times, as the request itself may kill
    the replica is closing, or ill (503)     again after a pause: it had not accepted the request
    the replica dies in the middle           the stream ends with an event that holds an error: what came cannot be unsaid
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from prometheus_client import Counter
from starlette.types import Message, Receive, Scope, Send

from m3.serving.engine.requests import Busy, Refused
from m3.serving.http.errors import error_body, refused_response
from m3.serving.http.relay import Asked, read_body
from m3.serving.settings import Settings

Ask = Callable[[Asked], AsyncGenerator[Message]]
"""Asks one replica. Raises `ReplicaDied` or `NoPlace`."""
PAUSES = (0.1, 0.2, 0.5, 1.0)
"""Seconds before the request is offered again; the last one from then on."""


class ReplicaDied(Exception):
    """While it had the request."""


class NoPlace(Exception):
    """The queues of all replicas are full."""


class Retried:
    """An ASGI app. `retried` and `interrupted` count requests by the model's name."""

    def __init__(
        self,
        name: str,
        ask: Ask,
        settings: Settings,
        retries: int,
        retried: Counter,
        interrupted: Counter,
    ) -> None:
        self._ask, self._retries, self._settings = ask, retries, settings
        self._retried, self._interrupted = retried.labels(name), interrupted.labels(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        relayed_request = Asked(scope["method"], scope["path"], tuple(scope["headers"]), body)
        # a replica may die when the answer is all but there
        seconds = 2 * self._settings.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                start_message, first_part, answer = await self._begin(relayed_request)
        except TimeoutError:
            refused = Busy(
                f"no replica of the model answered within {seconds:g} s; try again later",
                self._settings.queue.retry_after_seconds,
                status=503,
            )
            await refused_response(refused)(scope, receive, send)
        except Refused as refused:
            await refused_response(refused)(scope, receive, send)
        else:
            await send(start_message)
            await self._pass_on(start_message, first_part, answer, send)

    async def _begin(
        self, relayed_request: Asked
    ) -> tuple[Message, Message, AsyncGenerator[Message]]:
        """The start of the response, the first part of its body, and where the rest comes from.

        Raises:
            Refused: all queues are full, or too many replicas died.
        """
        deaths = turn = 0
        while True:
            answer = self._ask(relayed_request)
            try:
                start_message, first_part = await anext(answer), await anext(answer)
                if start_message["status"] != 503:
                    return start_message, first_part, answer
                await answer.aclose()
            except ReplicaDied:
                deaths += 1
                if deaths > self._retries:
                    raise _given_up(deaths) from None
                self._retried.inc()
            except NoPlace:
                if not turn:  # else it was accepted once, and is kept
                    raise Busy(
                        "the queues of all replicas of this model are full; try again later",
                        self._settings.queue.retry_after_seconds,
                    ) from None
            await asyncio.sleep(PAUSES[min(turn, len(PAUSES) - 1)])
            turn += 1

    async def _pass_on(
        self,
        start_message: Message,
        body_part: Message,
        answer: AsyncGenerator[Message],
        send: Send,
    ) -> None:
        async with aclosing(answer):
            await send(body_part)
            while body_part.get("more_body", False):
                try:
                    body_part = await anext(answer)
                except ReplicaDied:
                    self._interrupted.inc()
                    body_part = _interruption(start_message)
                await send(body_part)


def _interruption(start_message: Message) -> Message:
    content_type = dict(start_message["headers"]).get(b"content-type", b"")
    assert content_type.startswith(b"text/event-stream"), content_type  # all else comes in one part
    error_text = (
        "the replica that wrote this answer died; what came is not the whole answer: ask again"
    )
    event = f"data: {json.dumps(error_body(500, error_text, 'replica_died'))}\n\n"
    return {"type": "http.response.body", "body": event.encode(), "more_body": False}


def _given_up(deaths: int) -> Refused:
    return Refused(
        f"{deaths} replicas died with this request, which is not tried again: it may be what kills "
        "them",
        status=500,
        code="replica_died",
    )
