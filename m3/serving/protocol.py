"""HTTP/1.1 for clients that take their time: uvicorn's own, but a connection whose request does not come is closed.

uvicorn waits for ever for the first line and the headers of a request. In: a connection. Out: requests, or its end.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0
"""From the opening of a connection, or the first byte after a response, to the end of the headers."""


class Http(H11Protocol):
    """What uvicorn makes of each connection (`uvicorn.Config(http=Http)`)."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

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
