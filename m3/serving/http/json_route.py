"""A route whose JSON is parsed on a thread, so that a large body does not hold up everybody else's
requests.

Apart from the routes because FastAPI takes it as a class (its docs: "Custom Request and APIRoute
class"). One parse of the largest body takes a tenth of a second of the interpreter; between it, the
validation and the decoding of images the event loop answers others. What would take longer is
refused before (m3/serving/http/middleware.py).
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class ThreadedJsonRequest(Request):
    """Its `json()` is what FastAPI reads the body with."""

    async def json(self) -> Any:
        """Errors are those of `json.loads`."""
        return await asyncio.to_thread(json.loads, await self.body())


class JsonRoute(APIRoute):
    """For `APIRouter(route_class=...)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual handler, given a request that parses on a thread."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(ThreadedJsonRequest(request.scope, request.receive))

        return handle
