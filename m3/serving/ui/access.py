"""What stands before the page: of all that Gradio can serve, only what the page needs, and nothing
from elsewhere.

In: HTTP requests below `UI_PATH`. Out: those of `ROUTES`; the others are a 404. Gradio alone would
fetch addresses for a client (`file=https://...`, or a `path` of that kind in an event's data),
forward requests and take recordings. The browser is told to load and to ask nothing from other
hosts.
"""

import json
import re
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3.serving.engine.requests import Busy, Refused
from m3.serving.http.errors import refused_response
from m3.serving.settings import Settings

UI_PATH = "/ui"
ICON_PATH = "/favicon.ico"
"""Where browsers look for a page's icon, whatever the page says."""
ROUTES: dict[str, re.Pattern[str]] = {
    "GET": re.compile(
        r"/?|/(config|theme\.css|favicon\.ico|logout|login_check|assets/.+|static/.+)/?"
        r"|/gradio_api/(startup-events|login_check|theme\.css|upload_progress|queue/data|heartbeat/\w+|file=/.+)/?"
    ),
    "POST": re.compile(r"/login/?|/gradio_api/(queue/join|run/predict|upload|cancel|reset)/?"),
}
"""Method -> paths below `UI_PATH`.

`file=` opens absolute paths of Gradio's own folder; addresses do not begin with `/`.
"""
EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
"""Where the data of an event comes in."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """An ASGI middleware.

    `folder`: where uploaded files are kept; it may hold `settings.ui_bytes`.
    """

    def __init__(self, app: ASGIApp, settings: Settings, folder: Path) -> None:
        self._app, self._settings, self._folder = app, settings, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_below(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            path = scope["path"][len(UI_PATH) :]
            self._check(scope["method"], path)
            if path.startswith(EVENTS):
                receive = await self._checked(receive)
            await self._app(scope, receive, _protecting(send))
        except Refused as refused:
            await refused_response(refused)(scope, receive, send)

    def _check(self, method: str, path: str) -> None:
        routes = ROUTES.get("GET" if method == "HEAD" else method)
        if routes is None or not routes.fullmatch(path):
            raise Refused("there is no such page", status=404, code="not_found")
        if (
            path.startswith("/gradio_api/upload")
            and method == "POST"
            and self._held() > self._settings.ui_bytes
        ):
            raise Busy(
                "the server holds as many uploaded files as it may; try again later",
                self._settings.queue.retry_after_seconds,
            )

    async def _checked(self, receive: Receive) -> Receive:
        """The data of an event names no files but those that were uploaded here."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            json.loads(body, object_hook=self._check_file)
        except Refused:
            raise
        except (ValueError, RecursionError):
            raise Refused("the event is not JSON") from None
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay

    def _check_file(self, found: dict[str, Any]) -> dict[str, Any]:
        path = found.get("path")
        if path is not None and not (isinstance(path, str) and self._is_uploaded(path)):
            raise Refused("this server opens no files and no addresses here: upload the file")
        return found

    def _is_uploaded(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._folder)
        except (OSError, ValueError):  # a null byte, a loop of links, a name that is too long
            return False

    def _held(self) -> int:
        return sum(_size(file) for file in self._folder.rglob("*"))


def is_ui(path: str) -> bool:
    """Whether it is one of the page's, which has a login of its own."""
    return path == ICON_PATH or is_below(path)


def is_below(path: str) -> bool:
    return path == UI_PATH or path.startswith(f"{UI_PATH}/")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # deleted in the meantime
        return 0


def _protecting(send: Send) -> Send:
    async def protect(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return protect
