"""Many clients of one server: what they ask, and what they saw.

In: the server's address, questions with the answers they must get, how many clients, how long. Out:
    a `Seen` per request.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Question:
    """`expected`: what the model answers without a server, alone and unbatched."""

    image: bytes
    text: str
    scale: int
    max_tokens: int
    expected: str

    def body(self, model: str, stream: bool) -> dict[str, Any]:
        address = f"data:image/png;base64,{base64.b64encode(self.image).decode()}"
        message_content = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": self.text},
        ]
        return {
            "model": model,
            "messages": [{"role": "user", "content": message_content}],
            "max_tokens": self.max_tokens,
            "matryoshka_vis_token_scale": self.scale,
            "stream": stream,
        }


@dataclass(frozen=True)
class Seen:
    """One request.

    `first_seconds`: to the first text, of streams alone; `error` is empty where there was none.
    """

    scale: int
    seconds: float
    first_seconds: float | None
    is_right: bool
    error: str


async def load(
    address: str,
    model: str,
    questions: Sequence[Question],
    clients: int,
    seconds: float,
    seed: int = 0,
) -> list[Seen]:
    """Each client asks one question after the other, every other one as a stream, until the time
    is over.
    """
    load_replies: list[Seen] = []
    load_deadline = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        async with httpx2.AsyncClient(base_url=address, timeout=PATIENCE_SECONDS) as http:
            while time.monotonic() < load_deadline:
                load_replies.append(
                    await ask(http, model, rng.choice(questions), rng.random() < 0.5)
                )

    await asyncio.gather(*(client(client_number) for client_number in range(clients)))
    return load_replies


async def ask(http: httpx2.AsyncClient, model: str, question: Question, stream: bool) -> Seen:
    started, first_second = time.perf_counter(), None
    answer_text, error_text = "", ""
    try:
        if stream:
            async with http.stream(
                "POST", "/v1/chat/completions", json=question.body(model, stream)
            ) as response:
                async for stream_line in response.aiter_lines():
                    piece = _piece(stream_line)
                    first_second = (
                        time.perf_counter() - started
                        if piece and first_second is None
                        else first_second
                    )
                    answer_text += piece
                status = response.status_code
        else:
            response = await http.post("/v1/chat/completions", json=question.body(model, stream))
            status = response.status_code
            answer_text = (
                response.json()["choices"][0]["message"]["content"] if status == 200 else ""
            )
        error_text = "" if status == 200 else f"status {status}"
    except httpx2.HTTPError as failed:
        error_text = type(failed).__name__
    return Seen(
        question.scale,
        time.perf_counter() - started,
        first_second,
        answer_text == question.expected,
        error_text,
    )


def _piece(line: str) -> str:
    """The text in a line of an event stream."""
    if not line.startswith("data: {"):
        return ""
    chunk_choices = json.loads(line.removeprefix("data: "))["choices"]
    return (chunk_choices[0]["delta"].get("content") or "") if chunk_choices else ""
