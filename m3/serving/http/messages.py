"""OpenAI's messages to the engine's turns: addresses become bytes.

In: a `ChatRequest` or `GenerateRequest`. Out: `Request`. `data:` addresses are decoded here; others
are left to a `Fetch` (m3/serving/http/fetch.py), which asks whether they are allowed. Paths and
`file:` addresses are no images here, whatever stands there.
"""

import asyncio
from collections.abc import Awaitable, Callable

from m3.inference import Generation
from m3.processing.video import Sampling
from m3.serving.engine.requests import Detail, Ending, Refused, Request, Turn, Visual
from m3.serving.http.body.addresses import (
    WHITE_SPACE,
    decode_base64,
    is_data_address,
    read_data_address,
)
from m3.serving.http.body.structured import answer_format
from m3.serving.http.schema import (
    AssistantMessage,
    ChatRequest,
    GenerateRequest,
    ImagePart,
    SystemMessage,
    TextPart,
    VideoPart,
)
from m3.serving.settings import Limits

Fetch = Callable[[str, int], Awaitable[bytes]]
"""An address and the most bytes it may have -> its content."""
DETAILS: dict[str | None, Detail | None] = {
    None: None,
    "auto": None,
    "low": "low",
    "high": "high",
    "original": "high",
}
"""OpenAI's words for how closely an image is looked at -> ours."""


async def chat_request(
    body: ChatRequest, limits: Limits, fetch: Fetch, model_scale: str | None = None
) -> Request:
    """`model_scale`: the budget behind the model's name.

    Errors are `Refused`, with the place of the mistake as OpenAI names it (`messages.0.content.1`).
    """
    _check_number(body, limits)
    _check_options(body)
    turns = []
    for message_index, message in enumerate(body.messages):
        message_parts = [message.content] if isinstance(message.content, str) else message.content
        read_parts = [
            await _part(message_part, limits, fetch, f"messages.{message_index}.content.{n}")
            for n, message_part in enumerate(message_parts)
        ]
        turns.append(
            Turn(
                "system" if isinstance(message, SystemMessage) else message.role, tuple(read_parts)
            )
        )
    generation = Generation(
        answer_tokens(body.max_completion_tokens or body.max_tokens, limits),
        0.0 if body.temperature is None else body.temperature,
        1.0 if body.top_p is None else body.top_p,
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    scale, scale_place = _request_scale(body, model_scale)
    ending: Ending = (
        "continued"
        if body.continue_final_message
        else "as_it_is"
        if body.add_generation_prompt is False
        else "answer"
    )
    return Request(
        tuple(turns),
        scale,
        generation,
        body.seed,
        stop,
        scale_place,
        ending,
        answer_format=answer_format(body),
        choice_count=body.n or 1,
        top_count=(body.top_logprobs or 0) if body.logprobs else None,
    )


def answer_tokens(asked_tokens: int | None, limits: Limits) -> int:
    """Tokens of an answer: the server's limit, or fewer where fewer are asked for."""
    return limits.new_tokens if asked_tokens is None else min(asked_tokens, limits.new_tokens)


def _request_scale(body: ChatRequest, model_scale: str | None) -> tuple[int | str | None, str]:
    """The budget of pictures that say none, and where it stands; the first of these has precedence."""
    arguments = body.mm_processor_kwargs
    settings = {
        "matryoshka_vis_token_scale": body.matryoshka_vis_token_scale,
        "mm_processor_kwargs.matryoshka_vis_token_scale": None
        if arguments is None
        else arguments.matryoshka_vis_token_scale,
        "model": model_scale,
    }
    for scale_place, scale in settings.items():
        if scale is not None:
            return scale, scale_place
    return None, next(iter(settings))


def _check_options(body: ChatRequest) -> None:
    """Fields that contradict each other."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused(
            "max_tokens: give max_completion_tokens or its older name max_tokens, not both",
            param="max_tokens",
        )
    if body.stream_options is not None and not body.stream:
        raise Refused(
            "stream_options: this is for answers that are streamed: set stream, or leave it out",
            param="stream_options",
        )
    if body.top_logprobs and not body.logprobs:
        raise Refused(
            "top_logprobs: this is for answers with log-probabilities: set logprobs, or leave it out",
            param="top_logprobs",
        )
    if body.continue_final_message and body.add_generation_prompt:
        raise Refused(
            "add_generation_prompt: with continue_final_message the answer goes on with the last "
            "message, so there is no new turn: set this to false, or leave it out",
            param="add_generation_prompt",
        )
    last_message = body.messages[-1]
    if body.continue_final_message and not (
        isinstance(last_message, AssistantMessage) and last_message.content
    ):
        raise Refused(
            "continue_final_message: expected an assistant's message with a text as the last one, "
            f"got one of the {last_message.role}",
            param="continue_final_message",
        )


def generate_request(
    body: GenerateRequest, limits: Limits, model_scale: str | None = None
) -> Request:
    """mllm-npu's: one question, with an image in front of it."""
    turn_parts: list[str | Visual] = [body.input_text]
    if body.image is not None:
        decode = read_data_address if is_data_address(body.image) else decode_base64
        content = decode(body.image, limits.image_bytes, "image")
        turn_parts.insert(0, Visual("image", content, field_path="image"))
    generation = Generation(answer_tokens(body.max_new_tokens, limits))
    scale = body.matryoshka_vis_token_scale
    turns = (Turn("user", tuple(turn_parts)),)
    return Request(turns, model_scale if scale is None else scale, generation)


def _check_number(body: ChatRequest, limits: Limits) -> None:
    """Before anything is fetched."""
    all_parts = [
        message_part
        for m in body.messages
        if isinstance(m.content, list)
        for message_part in m.content
    ]
    for part_name, part_type, limit in (
        ("images", ImagePart, limits.images),
        ("videos", VideoPart, limits.videos),
    ):
        part_count = sum(isinstance(message_part, part_type) for message_part in all_parts)
        if part_count > limit:
            raise Refused(
                f"messages: the request has {part_count} {part_name}, more than this server's limit of {limit}",
                param="messages",
            )


async def _part(
    message_part: str | TextPart | ImagePart | VideoPart,
    limits: Limits,
    fetch: Fetch,
    field_path: str,
) -> str | Visual:
    if isinstance(message_part, str):
        return message_part
    if isinstance(message_part, TextPart):
        return message_part.text
    return await read_visual(message_part, limits, fetch, field_path)


async def read_visual(
    message_part: ImagePart | VideoPart, limits: Limits, fetch: Fetch, field_path: str
) -> Visual:
    """`field_path`: of the part in the body, for errors."""
    if isinstance(message_part, ImagePart):
        content = await _content(message_part.image_url.url, limits.image_bytes, fetch, field_path)
        return Visual(
            "image",
            content,
            message_part.matryoshka_vis_token_scale,
            field_path=field_path,
            detail=DETAILS[message_part.image_url.detail],
        )
    try:
        sampling = Sampling(
            num_frames=message_part.num_frames, fps=message_part.fps, collage=message_part.collage
        )
    except ValueError as error:
        raise Refused(f"{field_path}: {error}", param=field_path) from error
    content = await _content(message_part.video_url.url, limits.video_bytes, fetch, field_path)
    return Visual(
        "video",
        content,
        message_part.matryoshka_vis_token_scale,
        sampling,
        field_path,
        DETAILS[message_part.video_url.detail],
    )


async def _content(address: str, max_bytes: int, fetch: Fetch, field_path: str) -> bytes:
    address = address.strip(WHITE_SPACE)
    if is_data_address(address):
        return await asyncio.to_thread(read_data_address, address, max_bytes, field_path)
    if address[:8].lower().startswith(("http://", "https://")):
        try:
            return await fetch(address, max_bytes)
        except Refused as refused:
            raise Refused(
                f"{field_path}: {refused}", refused.status, refused.code, field_path
            ) from refused
    raise Refused(
        f"{field_path}: expected a data: address with the content, or http(s)://; this server opens "
        f"no files and no other addresses. Got {address[:40]!r}",
        param=field_path,
    )
