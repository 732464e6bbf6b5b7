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
from m3.serving.settings import Limits

Fetch = Callable[[str, int], Awaitable[bytes]]
"""An address and the most bytes it may have -> its content."""


async def chat_request(body: ChatRequest, limits: Limits, fetch: Fetch) -> Request:
    """Errors are `Refused`, with the place of the mistake as OpenAI names it
    (`messages.0.content.1`).
    """
    _check_number(body, limits)
    turns = []
    for at, message in enumerate(body.messages):
        parts = [message.content] if isinstance(message.content, str) else message.content
        read = [
            await _part(part, limits, fetch, f"messages.{at}.content.{n}")
            for n, part in enumerate(parts)
        ]
        turns.append(
            Turn("system" if isinstance(message, SystemMessage) else message.role, tuple(read))
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
    asked = body.max_completion_tokens or body.max_tokens
    generation = Generation(
        limits.new_tokens if asked is None else asked,
        0.0 if body.temperature is None else body.temperature,
        1.0 if body.top_p is None else body.top_p,
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Request(tuple(turns), body.matryoshka_vis_token_scale, generation, body.seed, stop)


def generate_request(body: GenerateRequest, limits: Limits) -> Request:
    """mllm-npu's: one question, with an image in front of it."""
    parts: list[str | Visual] = [body.input_text]
    if body.image is not None:
        parts.insert(0, Visual("image", decode_base64(body.image, limits.image_bytes, "image")))
    generation = Generation(
        limits.new_tokens if body.max_new_tokens is None else body.max_new_tokens
    )
    return Request((Turn("user", tuple(parts)),), body.matryoshka_vis_token_scale, generation)


def _check_number(body: ChatRequest, limits: Limits) -> None:
    """Before anything is fetched."""
    parts = [part for m in body.messages if isinstance(m.content, list) for part in m.content]
    for name, kind, limit in (
        ("images", ImagePart, limits.images),
        ("videos", VideoPart, limits.videos),
    ):
        number = sum(isinstance(part, kind) for part in parts)
        if number > limit:
            raise Refused(
                f"the request has {number} {name}, more than this server's limit of {limit}",
                param="messages",
            )


async def _part(
    part: str | TextPart | ImagePart | VideoPart, limits: Limits, fetch: Fetch, place: str
) -> str | Visual:
    if isinstance(part, str):
        return part
    if isinstance(part, TextPart):
        return part.text
    return await read_visual(part, limits, fetch, place)


async def read_visual(
    part: ImagePart | VideoPart, limits: Limits, fetch: Fetch, place: str
) -> Visual:
    """`place`: of the part in the body, for errors."""
    if isinstance(part, ImagePart):
        content = await _content(part.image_url.url, limits.image_bytes, fetch, place)
        return Visual("image", content, part.matryoshka_vis_token_scale)
    try:
        sampling = Sampling(num_frames=part.num_frames, fps=part.fps, collage=part.collage)
    except ValueError as error:
        raise Refused(str(error), param=place) from error
    content = await _content(part.video_url.url, limits.video_bytes, fetch, place)
    return Visual("video", content, part.matryoshka_vis_token_scale, sampling)


async def _content(address: str, max_bytes: int, fetch: Fetch, place: str) -> bytes:
    if address[:5].lower() == "data:":
        head, comma, body = address.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(
                f"{place}: expected 'data:<type>;base64,<content>', got {address[:40]!r}...",
                param=place,
            )
        return await asyncio.to_thread(decode_base64, body, max_bytes, place)
    if address[:8].lower().startswith(("http://", "https://")):
        try:
            return await fetch(address, max_bytes)
        except Refused as refused:
            raise Refused(f"{place}: {refused}", refused.status, refused.code, place) from refused
    raise Refused(
        f"{place}: expected a data: address with the content, or http(s)://; this server opens no "
        "files and no other "
        f"addresses. Got {address[:40]!r}",
        param=place,
    )


def decode_base64(text: str, max_bytes: int, place: str) -> bytes:
    """Its length is looked at first."""
    if len(text) > max_bytes * 4 // 3 + 4:
        raise Refused(
            f"{place}: the file has about {len(text) * 3 // 4:,} bytes, more than this server's "
            f"limit of {max_bytes:,}",
            param=place,
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise Refused(f"{place}: the content is not valid base64 ({error})", param=place) from error
