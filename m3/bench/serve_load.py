"""Load of many clients on one server.

In: the server's address, questions with their expected answers, number of clients, duration. Out: a
`RequestResult` per request.
"""

import asyncio
import base64
import json
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from m3.nesting import SCALE_OPTION

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Question:
    """A request; `expected` is the model's answer without a server, unbatched."""

    image: bytes
    text: str
    scale: int | str
    max_tokens: int
    expected: str

    def body(self, model: str, stream: bool) -> dict[str, Any]:
        address = f"data:image/png;base64,{base64.b64encode(self.image).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": self.text},
        ]
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            SCALE_OPTION: self.scale,
            "stream": stream,
        }


@dataclass(frozen=True)
class RequestResult:
    """Result of a request; `first_seconds` until the first text, measured for streams only."""

    scale: int | str
    seconds: float
    first_seconds: float | None
    is_right: bool
    error: str


async def run_clients(
    address: str,
    model: str,
    questions: Sequence[Question],
    client_count: int,
    seconds: float,
    seed: int = 0,
) -> list[RequestResult]:
    """Let every client ask questions in turn, about half of them as streams, for `seconds`."""
    results: list[RequestResult] = []
    deadline = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_SECONDS) as http_client:
            while time.monotonic() < deadline:
                results.append(
                    await ask_server(http_client, model, rng.choice(questions), rng.random() < 0.5)
                )

    await asyncio.gather(*(client(number) for number in range(client_count)))
    return results


async def ask_server(
    http_client: httpx2.AsyncClient, model: str, question: Question, is_stream: bool
) -> RequestResult:
    start_time, first_seconds = time.perf_counter(), None
    answer_text, error = "", ""
    try:
        if is_stream:
            async with http_client.stream(
                "POST", "/v1/chat/completions", json=question.body(model, is_stream)
            ) as response:
                async for line in response.aiter_lines():
                    answer_text += _event_text(line)
                    if answer_text and first_seconds is None:
                        first_seconds = time.perf_counter() - start_time
                status = response.status_code
        else:
            response = await http_client.post(
                "/v1/chat/completions", json=question.body(model, is_stream)
            )
            status = response.status_code
            answer_text = (
                response.json()["choices"][0]["message"]["content"] if status == 200 else ""
            )
        error = "" if status == 200 else f"status {status}"
    except httpx2.HTTPError as http_error:
        error = type(http_error).__name__
    return RequestResult(
        question.scale,
        time.perf_counter() - start_time,
        first_seconds,
        answer_text == question.expected,
        error,
    )


def renew_picture(png: bytes) -> bytes:
    """The same picture as a file that nobody has seen: decoders ignore bytes after the end of a
    PNG.
    """
    return png + uuid.uuid4().bytes


def _event_text(line: str) -> str:
    """Text in a line of an event stream."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""
