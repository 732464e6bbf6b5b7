"""Checks before every route: the API key, the size of bodies and the time they take, and the count
of responses.

In: HTTP requests as they come. Out: those that may pass, with their whole body at hand; the others
    are answered here.
"""

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3.serving.engine.requests import Busy, Refused
from m3.serving.http.errors import refused_response
from m3.serving.http.relay import replay
from m3.serving.settings import Settings

OPEN = ("/health",)
"""Paths that need no key."""
MODEL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate")
"""Paths that ask a model, which their body names."""
JSON_ALONE = (*MODEL_PATHS, "/ui/token_grid")
MOST_VALUES = 10_000
"""In the JSON of a body: a hundred thousand wrong ones keep a server busy for seconds with
nothing but telling of them.
"""
MOST_ESCAPES = 500_000
"""In the strings of a body: each costs a parser as much as hundreds of plain characters.

Base64 with `\\/` has one in 64.
"""
MOST_QUOTES = 100_000
"""Escaped quotes in the strings of a body; each is a step of the count below."""
MOST_OUTSIDE = 1_000_000
"""Bytes of a body outside of its strings: names, numbers, brackets, white space."""
COUNTED = (*JSON_ALONE, "/v1/models", "/health", "/metrics")
"""Paths by which responses are counted; all others are one."""


@dataclass
class _Held:
    bytes: int = 0


def check_json_size(body: bytes) -> None:
    """Refuses a body whose parsing would hold everybody else up, in one pass that ends at the first
    limit it meets.

    Strings and commas count as values.
    """
    _check_limit(body.count(b"\\"), MOST_ESCAPES, "escaped characters")
    value_count = quotes = outside = body_position = 0
    is_string = False
    while body_position < len(body):
        quote = body.find(b'"', body_position)
        string_end = len(body) if quote < 0 else quote
        if is_string and _is_escaped(body, body_position, string_end):
            quotes += 1
            _check_limit(quotes, MOST_QUOTES, "escaped quotes")
        else:
            if not is_string:
                outside += string_end - body_position
                _check_limit(outside, MOST_OUTSIDE, "bytes outside of strings")
                value_count += 1 + body.count(b",", body_position, string_end)
                _check_limit(value_count, MOST_VALUES, "values")
            is_string = not is_string
        body_position = string_end + 1


def _check_limit(number: int, limit: int, counted_thing: str) -> None:
    if number > limit:
        raise Refused(f"the body has more than {limit:,} {counted_thing}", 413, "request_too_large")


def _is_escaped(body: bytes, start: int, quote: int) -> bool:
    """Tell whether an odd number of backslashes stands before the quote, back to `start`."""
    before = body[start:quote]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


class Guard:
    """An ASGI middleware.

    `responses` counts by path and status; `open_paths` need no key, as /health needs none.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, responses: Counter, open_paths: Collection[str] = ()
    ) -> None:
        self._app, self._settings, self._responses = app, settings, responses
        self._open_paths = frozenset((*OPEN, *open_paths))
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._in_all = _Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_path, headers, held_bytes = scope["path"], Headers(scope=scope), _Held()
        send = self._counting(request_path, send)
        try:
            self._check_key(request_path, headers)
            self._check_kind(scope["method"], request_path, headers)
            body = await self._body(headers, receive, held_bytes)
            if body is not None:
                if request_path in JSON_ALONE:
                    check_json_size(body)
                await self._app(scope, replay(body, receive), send)
        except Refused as refused:
            await refused_response(refused)(scope, receive, send)
        finally:
            self._in_all.bytes -= held_bytes.bytes

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._key is None or path in self._open_paths:
            return
        auth_scheme, _, given_key = headers.get("authorization", "").partition(" ")
        if auth_scheme.lower() != "bearer" or not hmac.compare_digest(
            given_key.strip().encode(), self._key
        ):
            raise Refused(
                "this server wants its API key: 'Authorization: Bearer KEY'", 401, "invalid_api_key"
            )

    def _check_kind(self, method: str, path: str, headers: Headers) -> None:
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and path in JSON_ALONE and content_type != "application/json":
            raise Refused(
                f"expected content of type application/json, got {content_type[:60]!r}",
                415,
                "unsupported_media_type",
            )

    async def _body(self, headers: Headers, receive: Receive, held_bytes: _Held) -> bytes | None:
        """None where the client leaves before it has sent it."""
        limits = self._settings.limits
        content_length = headers.get("content-length", "0")
        if (
            content_length.isascii()
            and content_length.isdigit()
            and int(content_length[:20]) > limits.body_bytes
        ):
            raise self._too_large()
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    body_message = await receive()
                    if body_message["type"] == "http.disconnect":
                        return None
                    chunks.append(body_message.get("body", b""))
                    self._hold(held_bytes, len(chunks[-1]))
                    if not body_message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refused(
                f"the body did not arrive within {limits.body_seconds:g} s", 408, "request_timeout"
            ) from None

    def _hold(self, own: _Held, more_bytes: int) -> None:
        own.bytes += more_bytes
        self._in_all.bytes += more_bytes
        if own.bytes > self._settings.limits.body_bytes:
            raise self._too_large()
        if self._in_all.bytes > self._settings.queue.held_bytes:
            raise Busy(
                "the server holds as many requests as it can; try again later",
                self._settings.queue.retry_after_seconds,
            )

    def _too_large(self) -> Refused:
        limit = self._settings.limits.body_bytes
        return Refused(
            f"the body is larger than this server's limit of {limit:,} bytes",
            413,
            "request_too_large",
        )

    def _counting(self, path: str, send: Send) -> Send:
        path_label = path if path in COUNTED else "other"

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses.labels(path_label, message["status"]).inc()
            await send(message)

        return count
