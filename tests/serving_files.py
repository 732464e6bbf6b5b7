"""Requests and files for the tests of the server."""

import base64
import io

from PIL import Image


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
