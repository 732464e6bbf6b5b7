"""Asks a server about an image at several scales, with OpenAI's client (pip install openai); the
answers are streamed.

python playground/serving/ask.py photo.png "What colour is the background?" 1 9 144

M3_SERVER, M3_MODEL and M3_API_KEY name another server, model and key.
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

image, question, *scales = sys.argv[1:]
client = OpenAI(
    base_url=os.environ.get("M3_SERVER", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("M3_API_KEY", "none"),
)
address = "data:image/png;base64," + base64.b64encode(Path(image).read_bytes()).decode()
for scale in scales or ["36"]:
    stream = client.chat.completions.create(
        model=os.environ.get("M3_MODEL", "m3-tiny"),
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": address}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"matryoshka_vis_token_scale": scale},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"  [{chunk.usage.model_extra['visual_tokens']} visual tokens]")
