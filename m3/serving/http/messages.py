"""OpenAI's messages to the engine's turns: addresses become bytes.

In: a `ChatRequest` or `GenerateRequest`. Out: `Request`. `data:` addresses are decoded here; others
are left to a `Fetch` (m3/serving/http/fetch.py), which asks whether they are allowed. Paths and
`file:` addresses are no images here, whatever stands there.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable

from m3.inference import Generation
from m3.processing.video import Sampling
from m3.serving.engine.requests import Refused, Request, Turn, Visual
from m3.serving.http.schema import (
    ChatRequest,
    GenerateRequest,
    ImagePart,
    SystemMessage,
    TextPart,
    VideoPart,
)
from m3.serving.http.structured import answer_format
from m3.serving.settings import Limits

Fetch = Callable[[str, int], Awaitable[bytes]]
"""An address and the most bytes it may have -> its content."""


async def chat_request(body: ChatRequest, limits: Limits, fetch: Fetch) -> Request:
    """Errors are `Refused`, with the place of the mistake as OpenAI names it
    (`messages.0.content.1`).
    """
    _check_number(body, limits)
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
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused(
            "give max_completion_tokens or its older name max_tokens, not both", param="max_tokens"
        )
    if body.stream_options is not None and not body.stream:
        raise Refused(
            "stream_options is for answers that are streamed: set stream, or leave it out",
            param="stream_options",
        )
    asked_tokens = body.max_completion_tokens or body.max_tokens
    generation = Generation(
        limits.new_tokens if asked_tokens is None else asked_tokens,
        0.0 if body.temperature is None else body.temperature,
        1.0 if body.top_p is None else body.top_p,
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if body.top_logprobs and not body.logprobs:
        raise Refused(
            "top_logprobs is for answers with log-probabilities: set logprobs, or leave it out",
            param="top_logprobs",
        )
    return Request(
        tuple(turns),
        body.matryoshka_vis_token_scale,
        generation,
        body.seed,
        stop,
        answer_format=answer_format(body),
        choice_count=body.n or 1,
        top_count=(body.top_logprobs or 0) if body.logprobs else None,
    )


def generate_request(body: GenerateRequest, limits: Limits) -> Request:
    """mllm-npu's: one question, with an image in front of it."""
    turn_parts: list[str | Visual] = [body.input_text]
    if body.image is not None:
        turn_parts.insert(
            0, Visual("image", decode_base64(body.image, limits.image_bytes, "image"))
        )
    generation = Generation(
        limits.new_tokens if body.max_new_tokens is None else body.max_new_tokens
    )
    return Request((Turn("user", tuple(turn_parts)),), body.matryoshka_vis_token_scale, generation)


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
                f"the request has {part_count} {part_name}, more than this server's limit of {limit}",
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
        return Visual("image", content, message_part.matryoshka_vis_token_scale)
    try:
        sampling = Sampling(
            num_frames=message_part.num_frames, fps=message_part.fps, collage=message_part.collage
        )
    except ValueError as error:
        raise Refused(str(error), param=field_path) from error
    content = await _content(message_part.video_url.url, limits.video_bytes, fetch, field_path)
    return Visual("video", content, message_part.matryoshka_vis_token_scale, sampling)


async def _content(address: str, max_bytes: int, fetch: Fetch, field_path: str) -> bytes:
    if address[:5].lower() == "data:":
        head, comma, body = address.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(
                f"{field_path}: expected 'data:<type>;base64,<content>', got {address[:40]!r}...",
                param=field_path,
            )
        return await asyncio.to_thread(decode_base64, body, max_bytes, field_path)
    if address[:8].lower().startswith(("http://", "https://")):
        try:
            return await fetch(address, max_bytes)
        except Refused as refused:
            raise Refused(
                f"{field_path}: {refused}", refused.status, refused.code, field_path
            ) from refused
    raise Refused(
        f"{field_path}: expected a data: address with the content, or http(s)://; this server opens "
        "no files and no other "
        f"addresses. Got {address[:40]!r}",
        param=field_path,
    )


def decode_base64(text: str, max_bytes: int, field_path: str) -> bytes:
    """Its length is looked at first."""
    if len(text) > max_bytes * 4 // 3 + 4:
        raise Refused(
            f"{field_path}: the file has about {len(text) * 3 // 4:,} bytes, more than this "
            "server's "
            f"limit of {max_bytes:,}",
            param=field_path,
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise Refused(
            f"{field_path}: the content is not valid base64 ({error})", param=field_path
        ) from error
