"""The server of an app: uvicorn, which ends when it is told to and everything accepted is answered.

In: an app and its settings. Out: `uvicorn.Server`. uvicorn alone waits for ever for the first line
and the headers of a request; `Http` closes such a connection, and one whose client does not read
its answer.
"""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from m3.serving.settings import Settings

WRITE_SECONDS = 60.0
"""How long a client may leave what it was sent unread, once the connection holds no more of it."""
HEADER_SECONDS = 15.0
"""From the opening of a connection, or the first byte after a response, to the end of the
headers.
"""


def make_server(app: FastAPI, settings: Settings, log_level: str = "info") -> uvicorn.Server:
    """`run` of it serves until SIGTERM or SIGINT; what was accepted by then is finished."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Http,
            ws="none",
            log_level=log_level,
            timeout_graceful_shutdown=settings.shutdown_seconds,
            server_header=False,
            proxy_headers=False,
        )
    )


class Http(H11Protocol):
    """The protocol of uvicorn's connections (`uvicorn.Config(http=Http)`)."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # uvloop's transports are none of asyncio's
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._read_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._read_on()
        super().resume_writing()

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        """Runs while there is no request under way; not begun anew by every byte."""
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_waiting)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_waiting(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
