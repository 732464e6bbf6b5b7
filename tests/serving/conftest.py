"""One small random model, an engine over it, and a server on the loopback in a thread of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from m3.inference import load
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.serving.api import create_app
from m3.serving.engine import Engine
from m3.serving.server import make_server
from m3.serving.settings import Settings

Loaded = tuple[M3ForConditionalGeneration, M3Processor]


@pytest.fixture(scope="session")
def loaded(tiny_checkpoint: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tiny_checkpoint(tmp_path_factory.mktemp("serving") / "tiny"), device="cpu")


@pytest.fixture
def engine(loaded: Loaded) -> Iterator[Engine]:
    engine = Engine(*loaded, Settings(name="tiny"))
    yield engine
    engine.close()


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


@pytest.fixture(scope="session")
def address(loaded: Loaded) -> Iterator[str]:
    settings = Settings(name="tiny")
    with serving(Engine(*loaded, settings), settings) as address:
        yield address


@pytest.fixture(scope="session")
def serve(loaded: Loaded) -> Callable[[Settings], AbstractContextManager[str]]:
    """A server with other settings."""
    return lambda settings: serving(Engine(*loaded, settings), settings)
