"""OpenAI's newer interface, `/v1/responses`, as far as it asks a model once: nothing is kept here,
so all of a conversation comes with each request.

In: a text, or messages with pictures. Out: a `response` object, or the events of its stream. The
messages become those of the chat (m3/serving/http/schema.py) and are read as such.
"""

import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, Tag
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import AnswerFormat, Event, Finished, Piece, Refused, Request
from m3.serving.http.body.fields import (
    LIST,
    TEXT,
    Ignored,
    Neutral,
    Scale,
    Strict,
    Text,
    by_field,
    tag,
    text_or_list,
)
from m3.serving.http.body.structured import (
    ANY_OBJECT,
    JsonFormat,
    JsonSchema,
    TextFormat,
    json_format,
)
from m3.serving.http.body.unused_fields import UnusedFields
from m3.serving.http.responses import STREAM_HEADERS, begun_events, gathered, usage_report
from m3.serving.http.schema import ChatRequest

NO_MEMORY = "this server keeps no conversation: send all of it as input"


class InputText(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    matryoshka_vis_token_scale: Scale | None = None
    file_id: Annotated[object, Neutral("this server keeps no files")] = None


InputPart = Annotated[
    Annotated[InputText, Tag(tag("input_text"))] | Annotated[InputImage, Tag(tag("input_image"))],
    by_field("type", "input_text", "input_image", output_text="input_text", text="input_text"),
]


class InputMessage(Strict):
    """A message, an earlier answer among them as it came."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[list[InputPart], Field(min_length=1), Tag(LIST)],
        text_or_list(),
    ]
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class JsonSchemaText(JsonSchema):
    """`text.format` has the schema beside its type."""

    type: Literal["json_schema"]


class TextOptions(Strict):
    format: (
        Annotated[
            Annotated[TextFormat, Tag(tag("text"))]
            | Annotated[JsonFormat, Tag(tag("json_object"))]
            | Annotated[JsonSchemaText, Tag(tag("json_schema"))],
            by_field("type", "text", "json_object", "json_schema"),
        ]
        | None
    ) = None
    verbosity: Annotated[
        object, Neutral("this server cannot be told how much to write", ("medium",))
    ] = None


class ResponseRequest(UnusedFields):
    """`POST /v1/responses`."""

    model: str
    input: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[list[InputMessage], Field(min_length=1), Tag(LIST)],
        text_or_list(),
    ]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    matryoshka_vis_token_scale: Scale | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: Ignored = None
    truncation: Annotated[
        object, Neutral("this server cannot leave out messages", ("disabled",))
    ] = None
    include: Annotated[object, Neutral("this server has nothing more to tell", ([],))] = None
    top_logprobs: Annotated[
        object, Neutral("this server tells log-probabilities at /v1/chat/completions alone", (0,))
    ] = None
    background: Annotated[
        object, Neutral("this server answers while the client waits", (False,))
    ] = None
    previous_response_id: Annotated[object, Neutral(NO_MEMORY)] = None
    conversation: Annotated[object, Neutral(NO_MEMORY)] = None
    prompt: Annotated[object, Neutral("this server keeps no prompts")] = None
    max_tool_calls: Ignored = None


def chat_body(body: ResponseRequest) -> ChatRequest:
    """The same request as one of the chat."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += [_chat_message(message) for message in body.input]
    fields = {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "matryoshka_vis_token_scale": body.matryoshka_vis_token_scale,
    }
    return ChatRequest.model_validate(fields)


def _chat_message(message: InputMessage) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    chat_parts: list[dict[str, Any]] = []
    for input_part in message.content:
        if isinstance(input_part, InputText):
            chat_parts.append({"type": "text", "text": input_part.text})
            continue
        if message.role != "user":
            raise Refused("input: images belong in a message whose role is user", param="input")
        chat_parts.append(
            {
                "type": "image_url",
                "image_url": {"url": input_part.image_url, "detail": input_part.detail},
                "matryoshka_vis_token_scale": input_part.matryoshka_vis_token_scale,
            }
        )
    return {"role": message.role, "content": chat_parts}


def as_input(refused: Refused, body: ResponseRequest) -> Refused:
    """An error of the chat's messages, with the places of this interface."""
    shift = int(body.instructions is not None)

    def input_path(match: re.Match[str]) -> str:
        return "input" if match[1] is None else f"input.{int(match[1]) - shift}"

    pattern = r"\bmessages(?:\.(\d+))?\b"
    refused.args = (re.sub(pattern, input_path, str(refused)),)
    refused.param = None if refused.param is None else re.sub(pattern, input_path, refused.param)
    return refused


def text_format(body: ResponseRequest) -> AnswerFormat | None:
    """The form that `text.format` asks for."""
    form = None if body.text is None else body.text.format
    if isinstance(form, JsonFormat):
        return AnswerFormat("json", ANY_OBJECT, "text.format")
    if isinstance(form, JsonSchemaText):
        return json_format(form.definition or {}, "text.format.schema")
    return None


class ResponseObject:
    """One answer as OpenAI's object, before, while and after it is written."""

    def __init__(self, body: ResponseRequest, model: str) -> None:
        self._body, self._model = body, model
        self._created = int(time.time())
        self._id, self.item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"

    def head(self) -> dict[str, Any]:
        """The object before its answer."""
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata if isinstance(body.metadata, dict) else {},
            "model": self._model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": {"type": "text"}}
            if body.text is None
            else body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p or 1.0,
            "truncation": "disabled",
            "usage": None,
        }

    def item(self, text: str | None, status: str) -> dict[str, Any]:
        """The message of the answer; None: it has no text yet."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [text_part(text)],
        }

    def whole(self, finished: Finished) -> dict[str, Any]:
        """The object with its answer."""
        usage = usage_report([finished.usage])
        status = "completed" if finished.reason == "stop" else "incomplete"
        details = None if status == "completed" else {"reason": "max_output_tokens"}
        return {
            **self.head(),
            "status": status,
            "incomplete_details": details,
            "output": [self.item(finished.text, status)],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
                "visual_tokens": usage.visual_tokens,
                "visual_tokens_per_image": usage.visual_tokens_per_image,
                "matryoshka_vis_token_scale_per_image": usage.matryoshka_vis_token_scale_per_image,
            },
        }


def text_part(text: str) -> dict[str, Any]:
    """A text among the parts of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def response_answer(
    http: HttpRequest, engine: Engine, request: Request, answer: ResponseObject
) -> dict[str, Any]:
    """The whole object. Raises `Refused`, or `ClientLeft`."""
    (finished,) = await gathered(http, engine.stream(request))
    return answer.whole(finished)


async def response_stream(
    http: HttpRequest, engine: Engine, request: Request, answer: ResponseObject
) -> Response:
    """The events of an answer."""
    events = await begun_events(http, engine.stream(request))
    return StreamingResponse(
        _event_stream(events, answer), media_type="text/event-stream", headers=STREAM_HEADERS
    )


async def _event_stream(
    events: AsyncGenerator[Event], answer: ResponseObject
) -> AsyncIterator[str]:
    number = 0

    def tell(kind: str, **content: object) -> str:
        nonlocal number
        event = {"type": kind, "sequence_number": number, **content}
        number += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"

    item_place = {"output_index": 0}
    text_place = {"item_id": answer.item_id, "output_index": 0, "content_index": 0}
    async with aclosing(events):
        yield tell("response.created", response=answer.head())
        yield tell("response.in_progress", response=answer.head())
        yield tell(
            "response.output_item.added", **item_place, item=answer.item(None, "in_progress")
        )
        yield tell("response.content_part.added", **text_place, part=text_part(""))
        try:
            async for event in events:
                if isinstance(event, Piece):
                    delta = {"delta": event.text, "logprobs": []}
                    yield tell("response.output_text.delta", **text_place, **delta)
                    continue
                response = answer.whole(event)
                text, status = event.text, response["status"]
                text_fields = {"text": text, "logprobs": []}
                yield tell("response.output_text.done", **text_place, **text_fields)
                yield tell("response.content_part.done", **text_place, part=text_part(text))
                item = answer.item(text, status)
                yield tell("response.output_item.done", **item_place, item=item)
                yield tell(f"response.{status}", response=response)
        except Refused as refused:  # too late for a status
            error = {"code": refused.code, "message": str(refused)}
            failed = {**answer.head(), "status": "failed", "error": error}
            yield tell("response.failed", response=failed)
