"""Several models behind one address: a request's `model` chooses.

In: models by name, each an ASGI app that speaks OpenAI's API for itself alone
    (m3/serving/http/api.py). Out: one app for all of them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from m3.serving.engine.requests import Refused
from m3.serving.http.body.model_names import read_model
from m3.serving.http.envelope import Envelope
from m3.serving.http.errors import add_error_handlers
from m3.serving.http.middleware import MODEL_PATHS, Guard
from m3.serving.http.relay import Asked, messages, read_body, replay
from m3.serving.http.schema import ModelCard, ModelList
from m3.serving.settings import Settings
from m3.serving.ui.page import GRID_PATH, OPEN_PATHS, file_routes

OBJECT = TypeAdapter(dict[str, object])
Pages = Sequence[tuple[str, str]]
"""Metrics in Prometheus' text format, by replica."""


@dataclass(frozen=True)
class Model:
    """`app` answers requests; `pages` gives its metrics; `is_well` says whether there is
    somebody to answer.
    """

    app: ASGIApp
    pages: Callable[[], Awaitable[Pages]]
    is_well: Callable[[], Awaitable[bool]]


class RouterMetrics:
    """Beside those of the models."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.responses = Counter(
            "m3_router_responses",
            "HTTP responses by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.retried = Counter(
            "m3_router_retried",
            "Requests asked again after a replica's death",
            ["model"],
            registry=registry,
        )
        self.interrupted = Counter(
            "m3_router_interrupted",
            "Streams that a replica's death ended",
            ["model"],
            registry=registry,
        )


class Choose:
    """An ASGI app: to the model that the body names.

    Where it names none, the first one says what is wrong with it.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._first = next(iter(models.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        model_name = await asyncio.to_thread(named, body)
        model = self._first if model_name is None else find(self._models, model_name)
        await model.app(scope, replay(body, receive), send)


def named(body: bytes) -> str | None:
    """The model that a body names, where it is a JSON object that names one."""
    try:
        body_content = OBJECT.validate_json(body)
    except ValidationError:
        return None
    model_name = body_content.get("model")
    return model_name if isinstance(model_name, str) else None


def find(models: Mapping[str, Model], name: str) -> Model:
    """The model of a name, behind which a budget may stand."""
    return models[read_model(name, models).name]


def create_router(
    models: Mapping[str, Model],
    settings: Settings,
    metrics: RouterMetrics,
    close: Callable[[], Awaitable[None]],
) -> FastAPI:
    """`close` is awaited when the app's life ends.

    With `settings.ui` the page is here, once for all models, whose apps have its token grids.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await close()

    app = FastAPI(title="M3", lifespan=lifespan, openapi_url=None)
    add_error_handlers(app)
    chosen_paths = (*MODEL_PATHS, *((GRID_PATH,) if settings.ui else ()))
    choose, first_app = Choose(models), next(iter(models.values())).app
    app.router.routes.extend(
        [
            *(Route(route_path, choose, methods=["POST"]) for route_path in chosen_paths),
            Route("/openapi.json", first_app, methods=["GET"]),  # alike for all
        ]
    )
    if settings.ui:
        app.router.routes += file_routes(settings.limits)
    cards = Cards(models)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[await cards.of(name) for name in models])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        return await cards.of(read_model(name, models).name)

    @app.get("/health")
    async def health() -> dict[str, object]:
        ill = [name for name, model in models.items() if not await model.is_well()]
        if ill:
            raise Refused(
                f"nobody answers for {', '.join(map(repr, ill))}", status=503, code="unavailable"
            )
        return {"status": "ok", "models": list(models)}

    @app.get("/metrics", response_class=Response)
    async def page() -> Response:
        text = generate_latest(metrics.registry) + await _model_metrics(models)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(
        Guard,
        settings=settings,
        responses=metrics.responses,
        open_paths=OPEN_PATHS if settings.ui else (),
    )
    app.add_middleware(Envelope)
    return app


async def _model_metrics(models: Mapping[str, Model]) -> bytes:
    pages = [
        ({"model": name, "replica": replica}, text)
        for name, model in models.items()
        for replica, text in await model.pages()
    ]
    return generate_latest(_Labelled(pages))


class Cards:
    """Entries of /v1/models: asked of each model once, as they do not change."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._known: dict[str, ModelCard] = {}

    async def of(self, name: str) -> ModelCard:
        if name not in self._known:
            start_message, *body_parts = [
                relayed_message
                async for relayed_message in messages(
                    self._models[name].app, Asked("GET", "/v1/models")
                )
            ]
            body_content = b"".join(body_part.get("body", b"") for body_part in body_parts)
            if start_message["status"] != 200:
                error_content = json.loads(body_content)["error"]
                raise Refused(
                    f"{name!r} does not answer now: {error_content['message']}",
                    start_message["status"],
                    error_content["code"],
                )
            (self._known[name],) = ModelList.model_validate_json(body_content).data
        return self._known[name]


class _Labelled(Collector):
    """Several pages as one: each sample with the labels of its page."""

    def __init__(self, pages: Sequence[tuple[Mapping[str, str], str]]) -> None:
        self._pages = pages

    def collect(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        for labels, page_text in self._pages:
            for family in text_string_to_metric_families(page_text):
                all_of_it = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                all_of_it.samples += [
                    family_sample._replace(labels={**family_sample.labels, **labels})
                    for family_sample in family.samples
                ]
        return list(families.values())
