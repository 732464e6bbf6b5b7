"""The app of a server: OpenAI's API in front of an engine, and the web page where it is asked for.

In: an `Engine` and its `Settings`. Out: a FastAPI app; all of it is described at /openapi.json.
There is no /docs, as FastAPI's pages load their scripts from a public address.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from m3.serving.engine.engine import Engine
from m3.serving.http.api import answers, facts, on_left
from m3.serving.http.envelope import Envelope
from m3.serving.http.errors import add_error_handlers
from m3.serving.http.middleware import Guard
from m3.serving.http.responses import ClientLeft
from m3.serving.settings import Settings
from m3.serving.ui.page import OPEN_PATHS, page_routes


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The app owns the engine: when the app's life ends, the engine finishes what was accepted
    and is closed.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="M3",
        summary="A vision-language model at any number of visual tokens",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    add_error_handlers(app)
    app.add_exception_handler(ClientLeft, on_left)
    app.include_router(answers(engine, settings))
    app.include_router(facts(engine, settings))
    if settings.ui:
        app.include_router(page_routes(engine, settings))
    app.add_middleware(
        Guard,
        settings=settings,
        responses=engine.metrics.responses,
        open_paths=OPEN_PATHS if settings.ui else (),
    )
    app.add_middleware(Envelope, folder="/ui/" if settings.ui else None)
    # FastAPI's own word for an invalid body; ours is 400
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return app
