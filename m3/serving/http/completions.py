"""OpenAI's older interface, `/v1/completions`: texts that the model continues as they stand.

In: one text or several; no pictures and no chat template. Out: their continuations as choices of one
object, or as its event stream.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, Field, Tag
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from m3.inference import Generation
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import (
    Event,
    Finished,
    Piece,
    Refused,
    Request,
    TokenLogProbabilities,
    Usage,
)
from m3.serving.http.body.fields import LIST, TEXT, Neutral, SamplingFields, Text, text_or_list
from m3.serving.http.body.log_probabilities import LOWEST
from m3.serving.http.body.structured import FormFields, answer_format
from m3.serving.http.body.unused_fields import UnusedFields
from m3.serving.http.errors import error_body
from m3.serving.http.messages import answer_tokens
from m3.serving.http.responses import REASONS, STREAM_HEADERS, begun_events, gathered, usage_report
from m3.serving.http.schema import StopField, StreamOptions, UsageReport
from m3.serving.settings import Limits

DEFAULT_TOKENS = 16
"""OpenAI's, where a request does not say."""


class TextRequest(UnusedFields, FormFields, SamplingFields):
    """`POST /v1/completions`."""

    model: str
    prompt: Annotated[
        Annotated[Text, Tag(TEXT)]
        | Annotated[list[Text], Field(min_length=1, max_length=100), Tag(LIST)],
        text_or_list(),
    ] = Field(description="a text, or several, which are choices of their own; no token ids")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="default: 16")
    stop: StopField = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers to each prompt")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: Annotated[object, Neutral("this server cannot fill in before a suffix")] = None


class TextLogProbabilities(BaseModel):
    """The older form: lists of the same length."""

    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
    text_offset: list[int] = []


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogProbabilities | None = None
    finish_reason: Literal["stop", "length"] | None = None


class TextCompletion(BaseModel):
    """The whole answer, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReport | None = None


def text_requests(body: TextRequest, limits: Limits) -> list[Request]:
    """A request for each prompt.

    Raises:
        Refused: more answers than a request may have, or options that do not go together.
    """
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    count = len(prompts) * (body.n or 1)
    if count > limits.choices:
        raise Refused(
            f"prompt: {len(prompts)} prompts with {body.n or 1} answers each are {count} answers, "
            f"more than this server's limit of {limits.choices}: send them in several requests",
            param="prompt",
        )
    if body.stream_options is not None and not body.stream:
        raise Refused(
            "stream_options: this is for answers that are streamed: set stream, or leave it out",
            param="stream_options",
        )
    generation = Generation(
        answer_tokens(body.max_tokens or DEFAULT_TOKENS, limits),
        0.0 if body.temperature is None else body.temperature,
        1.0 if body.top_p is None else body.top_p,
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    request = Request(
        (),
        None,
        generation,
        body.seed,
        stop,
        answer_format=answer_format(body),
        choice_count=body.n or 1,
        top_count=body.logprobs,
        field_path="prompt",
    )
    return [replace(request, prompt=prompt) for prompt in prompts]


async def text_answer(
    http: HttpRequest, engine: Engine, requests: Sequence[Request], model: str
) -> TextCompletion:
    """All choices in one object. Raises `Refused`, or `ClientLeft`."""
    answers = await gathered(http, _merged(engine, requests))
    choices = []
    for finished in answers:
        offsets = _Offsets(requests[0].top_count is not None)
        choices.append(
            TextChoice(
                index=finished.index,
                text=finished.text,
                logprobs=offsets.read(finished.log_probabilities),
                finish_reason=REASONS[finished.reason],
            )
        )
    return _text_completion(model, choices, _usage(answers, requests))


async def text_stream(
    http: HttpRequest, engine: Engine, requests: Sequence[Request], model: str, with_usage: bool
) -> Response:
    """The event stream of all choices."""
    events = await begun_events(http, _merged(engine, requests))
    return StreamingResponse(
        _chunks(events, requests, model, with_usage),
        media_type="text/event-stream",
        headers=STREAM_HEADERS,
    )


async def _merged(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[Event]:
    """Events of all requests as they come; the choices of one prompt stand behind another's."""
    waiting: asyncio.Queue[Event | BaseException] = asyncio.Queue()

    async def run(request: Request, first_index: int) -> None:
        async with aclosing(engine.stream(request)) as events:
            async for event in events:
                waiting.put_nowait(replace(event, index=first_index + event.index))

    def tell(task: asyncio.Task[None]) -> None:
        """A refusal, or an error of ours: nobody waits for a task that failed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            waiting.put_nowait(error)

    count = requests[0].choice_count
    tasks = [
        asyncio.create_task(run(request, number * count)) for number, request in enumerate(requests)
    ]
    for task in tasks:
        task.add_done_callback(tell)
    try:
        open_answers = len(requests) * count
        while open_answers:
            event = await waiting.get()
            if isinstance(event, BaseException):
                raise event
            open_answers -= isinstance(event, Finished)
            yield event
    finally:
        for task in tasks:
            task.cancel()


async def _chunks(
    events: AsyncGenerator[Event], requests: Sequence[Request], model: str, with_usage: bool
) -> AsyncIterator[str]:
    answers: list[Finished] = []
    tells = requests[0].top_count is not None
    offsets = [_Offsets(tells) for _ in range(len(requests) * requests[0].choice_count)]
    head = _text_completion(model, [], None)

    def chunk(choices: list[TextChoice], usage: UsageReport | None = None) -> str:
        content = head.model_copy(update={"choices": choices, "usage": usage})
        return f"data: {content.model_dump_json()}\n\n"

    async with aclosing(events):
        try:
            async for event in events:
                choice = TextChoice(index=event.index, text="")
                if isinstance(event, Piece):
                    choice.text = event.text
                    choice.logprobs = offsets[event.index].read(event.log_probabilities)
                else:
                    choice.finish_reason = REASONS[event.reason]
                    answers.append(event)
                yield chunk([choice])
        except Refused as refused:  # too late for a status
            yield f"data: {json.dumps(error_body(refused.status, str(refused), refused.code))}\n\n"
            return
        if with_usage:
            yield chunk([], _usage(answers, requests))
        yield "data: [DONE]\n\n"


class _Offsets:
    """The place in one answer's text, for its log-probabilities; `tells`: they were asked for."""

    def __init__(self, tells: bool) -> None:
        self._tells, self._offset = tells, 0

    def read(self, tokens: Sequence[TokenLogProbabilities]) -> TextLogProbabilities | None:
        if not self._tells:
            return None
        log_probabilities = TextLogProbabilities()
        for token in tokens:
            log_probabilities.tokens.append(_token_name(token.written.token))
            log_probabilities.token_logprobs.append(max(token.written.value, LOWEST))
            log_probabilities.top_logprobs.append(
                {_token_name(other.token): max(other.value, LOWEST) for other in token.likeliest}
            )
            log_probabilities.text_offset.append(self._offset)
            self._offset += len(token.written.token.decode(errors="replace"))
        return log_probabilities


def _token_name(token_bytes: bytes) -> str:
    """The text of a token; of a part of a character its bytes, as names must differ."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def _text_completion(
    model: str, choices: list[TextChoice], usage: UsageReport | None
) -> TextCompletion:
    return TextCompletion(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage,
    )


def _usage(answers: Sequence[Finished], requests: Sequence[Request]) -> UsageReport:
    """Each prompt counts once."""
    count = requests[0].choice_count
    prompt_tokens = sum(
        finished.usage.prompt_tokens for finished in answers if finished.index % count == 0
    )
    new_tokens = sum(finished.usage.new_tokens for finished in answers)
    return usage_report([Usage(prompt_tokens, (), (), new_tokens)])
