"""OpenAI's API over HTTP, in front of an engine.

In: an `Engine` and its `Settings`. Out: a FastAPI app: `/v1/chat/completions`, `/v1/models`,
`/health`, `/metrics`, and `/generate` for clients of mllm-npu. All of it is described at
/openapi.json; there is no /docs, as FastAPI's pages load their scripts from a public address.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from m3.nesting import resolutions
from m3.processing.scale_policy import Auto, Rule
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Refused, Request
from m3.serving.http.body.model_names import read_model
from m3.serving.http.completions import (
    TextCompletion,
    TextRequest,
    text_answer,
    text_requests,
    text_stream,
)
from m3.serving.http.fetch import Fetcher
from m3.serving.http.json_route import JsonRoute
from m3.serving.http.messages import Fetch, chat_request, generate_request
from m3.serving.http.response_objects import (
    ResponseObject,
    ResponseRequest,
    as_input,
    chat_body,
    response_answer,
    response_stream,
    text_format,
)
from m3.serving.http.responses import CLIENT_LEFT, chat_stream, completion, npu_answer, whole
from m3.serving.http.schema import (
    ChatCompletion,
    ChatRequest,
    ErrorReport,
    GenerateRequest,
    Health,
    ModelCard,
    ModelList,
)
from m3.serving.settings import Settings

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReport, "description": text}
    for status, text in {
        400: "the request is wrong, or asks for what this server does not do; the message says what",
        401: "no API key, or a wrong one",
        404: "no such model",
        408: "the body did not arrive in time",
        413: "the body is too large",
        415: "the body is not JSON",
        429: "too many requests; Retry-After says when to try again",
        500: "the server failed",
        503: "the server is shutting down",
    }.items()
}


def answers(engine: Engine, settings: Settings) -> APIRouter:
    """The routes that ask the model."""
    router = APIRouter(responses=ERRORS, route_class=JsonRoute)
    card, fetch = model_card(engine, settings), Fetcher(settings.allowed_hosts)

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> ChatCompletion | Response:
        model_scale = read_model(body.model, [card.id]).scale
        request = await read_chat(body, settings, fetch, model_scale)
        if body.stream:
            with_usage = (
                body.stream_options is not None and body.stream_options.include_usage is True
            )
            return await chat_stream(http, engine, request, card.id, with_usage)
        return completion(await whole(http, engine, request), request, card.id)

    @router.post("/v1/completions", response_model=TextCompletion)
    async def completions(body: TextRequest, http: HttpRequest) -> TextCompletion | Response:
        read_model(body.model, [card.id])
        requests = text_requests(body, settings.limits)
        if body.stream:
            options = body.stream_options
            with_usage = options is not None and options.include_usage is True
            return await text_stream(http, engine, requests, card.id, with_usage)
        return await text_answer(http, engine, requests, card.id)

    @router.post("/v1/responses")
    async def responses(body: ResponseRequest, http: HttpRequest) -> Response:
        model_scale = read_model(body.model, [card.id]).scale
        try:
            request = await read_chat(chat_body(body), settings, fetch, model_scale)
        except Refused as refused:
            raise as_input(refused, body) from refused
        request = replace(request, answer_format=text_format(body), field_path="input")
        answer = ResponseObject(body, card.id)
        if body.stream:
            return await response_stream(http, engine, request, answer)
        return JSONResponse(await response_answer(http, engine, request, answer))

    @router.post("/generate", response_class=Response)
    async def generate(body: GenerateRequest, http: HttpRequest) -> Response:
        """mllm-npu's payload; the answer is `{"text", "error_code"}`, ended by a NUL."""
        asked_model = read_model(body.model or card.id, [card.id])
        request = await asyncio.to_thread(
            generate_request, body, settings.limits, asked_model.scale
        )
        (finished,) = await whole(http, engine, request)
        return npu_answer(finished.text)

    return router


async def read_chat(
    body: ChatRequest, settings: Settings, fetch: Fetch, model_scale: str | None = None
) -> Request:
    """Read a chat request; fetch the files that its messages name, within the time limit."""
    seconds = settings.fetch_seconds
    deadline = asyncio.get_running_loop().time() + seconds

    async def fetch_in_time(address: str, max_bytes: int) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await fetch(address, max_bytes)
        except TimeoutError:
            raise Refused(
                f"this could not be fetched within the {seconds:g} s that a request has for it: "
                "send it as a data: address",
                code="fetch_timeout",
            ) from None

    return await chat_request(body, settings.limits, fetch_in_time, model_scale)


def facts(engine: Engine, settings: Settings) -> APIRouter:
    """The routes that tell of the server."""
    router = APIRouter(responses={status: ERRORS[status] for status in (401, 404)})
    card = model_card(engine, settings)

    @router.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> ModelCard:
        read_model(model, [card.id])
        return card

    @router.get("/health", responses={503: ERRORS[503]})
    async def health() -> Health:
        if not engine.is_alive:
            raise Refused("the engine has ended", status=503, code="shutting_down")
        return Health(model=card.id)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def model_card(engine: Engine, settings: Settings) -> ModelCard:
    """The model's entry in /v1/models."""
    return ModelCard(
        id=settings.name or "m3",
        created=int(time.time()),
        matryoshka_vis_token_scales=list(engine.processor.reachable_scales),
        trained_scales=engine.processor.trained_scales,
        automatic_scales=_automatic_scales(engine),
        max_model_len=engine.model.config.text_config.max_position_embeddings,
    )


def _automatic_scales(engine: Engine) -> list[str]:
    choice, ladder = engine.model.config.budget_choice, engine.processor.ladder
    has_router = choice is not None and bool(choice.prices)
    scales = {Auto().label: has_router, Rule().label: len(resolutions(ladder)) > 1}
    return [label for label, is_offered in scales.items() if is_offered]


async def on_left(_: HttpRequest, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)
