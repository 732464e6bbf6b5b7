"""Replies of the engine as OpenAI's objects and event streams, and as mllm-npu's.

In: an engine and a request of its own kind. Out: the response, whole or piece by piece. Where the
client leaves, the request is cancelled.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Literal, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Event, Finished, Piece, Reason, Refused, Request, Usage
from m3.serving.http.body.log_probabilities import ChoiceLogProbabilities, choice_log_probabilities
from m3.serving.http.errors import error_body
from m3.serving.http.schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    UsageReport,
)

T = TypeVar("T")
REASONS: dict[Reason, Literal["stop", "length"]] = {
    "stop": "stop",
    "length": "length",
    "time": "length",
    "cancelled": "stop",
}
"""The engine's word for the end of an answer -> OpenAI's."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies pass each event on as it comes; the second is nginx's."""
CLIENT_LEFT = 499
"""nginx's status for it; nobody reads it but the log."""


class ClientLeft(Exception):
    """There is nobody to answer."""


async def whole(http: HttpRequest, engine: Engine, request: Request) -> list[Finished]:
    """All answers, each in one piece, in their order. Raises `Refused`, or `ClientLeft`."""
    return await gathered(http, engine.stream(request))


async def gathered(http: HttpRequest, events: AsyncGenerator[Event]) -> list[Finished]:
    """The answers that events end with. Errors as in `whole`."""

    async def run() -> list[Finished]:
        async with aclosing(events):
            answers = [event async for event in events if isinstance(event, Finished)]
        return sorted(answers, key=lambda finished: finished.index)

    return await _unless_left(http, run())


async def chat_stream(
    http: HttpRequest, engine: Engine, request: Request, model: str, with_usage: bool
) -> Response:
    """OpenAI's event stream.

    A request that is refused before its first piece gets a status of its own.
    """
    events = await begun_events(http, engine.stream(request))
    return StreamingResponse(
        _chunks(events, request, model, with_usage),
        media_type="text/event-stream",
        headers=STREAM_HEADERS,
    )


async def begun_events(http: HttpRequest, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The same events, the first of which is there.

    Raises:
        Refused: instead of the first.
        ClientLeft: before it.
    """
    first_event = await _unless_left(http, anext(events))

    async def all_events() -> AsyncGenerator[Event]:
        async with aclosing(events):
            yield first_event
            async for event in events:
                yield event

    return all_events()


async def _unless_left(http: HttpRequest, awaited_answer: Awaitable[T]) -> T:
    """Wait for a reply, unless the client disconnects before it is there."""
    wanted_task, left_task = (
        asyncio.ensure_future(awaited_answer),
        asyncio.ensure_future(_left(http)),
    )
    try:
        await asyncio.wait({wanted_task, left_task}, return_when=asyncio.FIRST_COMPLETED)
        if wanted_task.done():
            return wanted_task.result()
        raise ClientLeft
    finally:
        wanted_task.cancel()
        left_task.cancel()


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _chunks(
    events: AsyncGenerator[Event], request: Request, model: str, with_usage: bool
) -> AsyncIterator[str]:
    chat_id, created = completion_id(), int(time.time())

    def chunk(choices: list[ChunkChoice], usage: UsageReport | None = None) -> str:
        chunk_content = ChatChunk(
            id=chat_id, created=created, model=model, choices=choices, usage=usage
        )
        return f"data: {_without_nulls(chunk_content)}\n\n"

    async with aclosing(events):
        for index in range(request.choice_count):
            yield chunk([ChunkChoice(index=index, delta=Delta(role="assistant", content=""))])
        usages: list[Usage] = []
        try:
            async for event in events:
                choice = ChunkChoice(index=event.index, delta=Delta())
                if isinstance(event, Piece):
                    choice.delta.content = event.text
                    choice.logprobs = _log_probabilities(event, request)
                else:
                    choice.finish_reason = REASONS[event.reason]
                    usages.append(event.usage)
                yield chunk([choice])
        except Refused as refused:  # too late for a status
            yield f"data: {json.dumps(error_body(refused.status, str(refused), refused.code))}\n\n"
            return
        if with_usage:
            yield chunk([], usage_report(usages))
        yield "data: [DONE]\n\n"


def _without_nulls(chunk: ChatChunk) -> str:
    """Keys without a value are left out, but for `finish_reason`: OpenAI's schema requires it."""
    content = chunk.model_dump(exclude_none=True)
    for choice in content["choices"]:
        choice.setdefault("finish_reason", None)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def completion(answers: Sequence[Finished], request: Request, model: str) -> ChatCompletion:
    """All answers of a request as OpenAI's object."""
    return ChatCompletion(
        id=completion_id(),
        created=int(time.time()),
        model=model,
        choices=[
            Choice(
                index=finished.index,
                message=AnswerMessage(content=finished.text),
                finish_reason=REASONS[finished.reason],
                logprobs=_log_probabilities(finished, request),
            )
            for finished in answers
        ],
        usage=usage_report([finished.usage for finished in answers]),
    )


def _log_probabilities(event: Event, request: Request) -> ChoiceLogProbabilities | None:
    if request.top_count is None:
        return None
    return choice_log_probabilities(event.log_probabilities)


def usage_report(usages: Sequence[Usage]) -> UsageReport:
    """Usage of a request, whose answers share its prompt."""
    prompt, new_tokens = usages[0], sum(usage.new_tokens for usage in usages)
    return UsageReport(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=new_tokens,
        total_tokens=prompt.prompt_tokens + new_tokens,
        visual_tokens=prompt.visual_tokens,
        visual_tokens_per_image=list(prompt.visual_tokens_of),
        matryoshka_vis_token_scale_per_image=list(prompt.scales_of),
    )


def completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def npu_answer(text: str) -> Response:
    """mllm-npu's: JSON ended by a NUL."""
    body_bytes = json.dumps({"text": text, "error_code": 0}).encode() + b"\0"
    return Response(body_bytes, media_type="application/json")
