"""A server in a thread, requests and files for the tests of serving."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx2
from PIL import Image

from m3.serving.app import create_app
from m3.serving.engine.engine import Engine
from m3.serving.http.server import make_server
from m3.serving.settings import Settings

PATIENCE = 120.0
"""Seconds.

Nothing is timed: what a test waits for comes at once, or late on a machine with other work, or
never.
"""


def png(colour: str = "red", size: tuple[int, int] = (60, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_address(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def ask(*images: bytes, question: str = "What is it?") -> list[dict]:
    """Messages of one user turn: the images, then the question."""
    shown = [{"type": "image_url", "image_url": {"url": data_address(image)}} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it is so; fails when it never is."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not come"
        time.sleep(0.02)


@contextmanager
def serving(engine: Engine, settings: Settings) -> Iterator[str]:
    """The address of a server; ends it, and the engine with it."""
    server = make_server(create_app(engine, settings), replace(settings, port=0), "warning")

    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def bystander(address: str) -> Iterator[list[float]]:
    """Another client, which asks for /health all the time; the seconds of each answer."""
    seconds: list[float] = []
    over = threading.Event()

    def ask_again_and_again() -> None:
        with httpx2.Client(base_url=address, timeout=PATIENCE) as client:
            while not over.is_set():
                start = time.perf_counter()
                assert client.get("/health").status_code == 200
                seconds.append(time.perf_counter() - start)
                over.wait(0.02)

    thread = threading.Thread(target=ask_again_and_again)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()
