"""A request on its way to a model that is served elsewhere: in another process, on another machine.

In: an ASGI request whose body is at hand. Out: what an ASGI app answers, as messages that can be
    sent on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """All of an HTTP request that an answer depends on."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = field(default=b"", repr=False)

    @property
    def scope(self) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


async def read_body(receive: Receive) -> bytes | None:
    """None where the client left before all of it had come."""
    chunks: list[bytes] = []
    while True:
        body_message = await receive()
        if body_message["type"] == "http.disconnect":
            return None
        chunks.append(body_message.get("body", b""))
        if not body_message.get("more_body", False):
            return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then whatever comes (the client's leaving)."""
    body_messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return body_messages.pop() if body_messages else await receive()

    return replayed


async def messages(app: ASGIApp, relayed_request: Asked) -> AsyncGenerator[Message]:
    """Messages that `app` sends: a start, then the parts of the body.

    Closing the generator early cancels the request.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    receive = replay(relayed_request.body, _never)
    task = asyncio.create_task(_run(app, relayed_request, receive, sent))
    try:
        while (sent_message := await sent.get()) is not None:
            yield sent_message
    finally:
        task.cancel()


async def _run(
    app: ASGIApp, relayed_request: Asked, receive: Receive, sent: "asyncio.Queue[Message | None]"
) -> None:
    try:
        await app(relayed_request.scope, receive, sent.put)
    finally:  # an error has become a response by now (m3/serving/http/errors.py); asyncio logs it
        sent.put_nowait(None)


async def _never() -> Message:
    return await asyncio.Future()
