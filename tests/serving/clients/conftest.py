"""A served model that other projects' clients are pointed at: `bash scripts/test_clients.sh`.

Their packages are not among ours, so these files are collected only where the script has set the
server's address and made an environment for them.
"""

import base64
import io
import os

import pytest
from PIL import Image, ImageDraw

ADDRESS, MODEL = os.environ.get("M3_CLIENTS_ADDRESS"), os.environ.get("M3_CLIENTS_MODEL", "m3-tiny")
collect_ignore_glob = [] if ADDRESS else ["test_*.py"]


@pytest.fixture(scope="session")
def address() -> str:
    assert ADDRESS
    return f"{ADDRESS}/v1"


@pytest.fixture(scope="session")
def model() -> str:
    return MODEL


@pytest.fixture(scope="session")
def picture() -> str:
    """A scene as a `data:` address whose base64 has line ends, as Python's `encodebytes` writes it."""
    image = Image.new("RGB", (96, 96), "blue")
    ImageDraw.Draw(image).ellipse((30, 30, 60, 60), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.encodebytes(file.getvalue()).decode()}"


@pytest.fixture(scope="session")
def expected(address: str, model: str, picture: str) -> str:
    """The answer, as plain HTTP gives it."""
    import httpx

    content = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "What colour is the background?"},
    ]
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"{address}/chat/completions", json=body, timeout=120).json()
    return reply["choices"][0]["message"]["content"]
