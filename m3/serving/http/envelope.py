"""Envelope of every request and answer: its id, HEAD, a slash at the end of a path.

In: HTTP requests as they come. Out: the same for the routes, which know none of this, and their
answers with `x-request-id`. Apart from m3/serving/http/middleware.py, which refuses: nothing is
refused here.
"""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ID_HEADER = "x-request-id"
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
"""An id that is given back as it came: no line end, nothing that a log or a terminal reads."""


def request_id(scope: Scope) -> str:
    """The caller's id, or a new one; the same for a request each time it is asked for."""
    if ID_HEADER not in scope:
        client_id = Headers(scope=scope).get(ID_HEADER, "")
        scope[ID_HEADER] = client_id if SANE_ID.fullmatch(client_id) else f"req_{uuid.uuid4().hex}"
    return scope[ID_HEADER]


class Envelope:
    """An ASGI middleware. `folder`: beginning of paths that are left as they are."""

    def __init__(self, app: ASGIApp, folder: str | None = None) -> None:
        self._app, self._folder = app, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        answer_id = request_id(scope)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[ID_HEADER] = answer_id
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(self._readable(scope, answer_id), receive, send_on)

    def _readable(self, scope: Scope, answer_id: str) -> Scope:
        """The request as routes have it: with its id, which a replica then has too."""
        headers = [(name, value) for name, value in scope["headers"] if name != ID_HEADER.encode()]
        headers.append((ID_HEADER.encode(), answer_id.encode()))
        route_scope = {**scope, "headers": headers}
        if scope["method"] == "HEAD":
            route_scope["method"] = "GET"
        path = scope["path"]
        is_left = self._folder is not None and path.startswith(self._folder)
        if len(path) > 1 and path.endswith("/") and not is_left:
            route_scope["path"] = path[:-1]
            route_scope["raw_path"] = scope.get("raw_path", path.encode()).removesuffix(b"/")
        return route_scope
