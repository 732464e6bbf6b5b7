"""Damaged videos from strangers cost their own requests and nothing else."""

import base64
import statistics
from pathlib import Path

import httpx2
import pytest
from damaged_videos import damaged
from serving_files import PATIENCE, bystander


@pytest.mark.slow
def test_the_server_survives_damaged_videos(address: str, tmp_path: Path) -> None:
    """Figures of ten minutes of it: docs/serving.md. `pytest -s` prints those of this run."""
    codes: dict[int, int] = {}
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client, bystander(address) as seconds:
        for content in damaged(tmp_path, 60, seed=2):
            url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
            part = {"type": "video_url", "video_url": {"url": url}, "num_frames": 4}
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": [part]}],
                "max_tokens": 1,
            }
            response = client.post("/v1/chat/completions", json=body)
            codes[response.status_code] = codes.get(response.status_code, 0) + 1
            if response.status_code != 200:
                message = response.json()["error"]["message"]
                assert message.startswith("messages.0.content.0: video of ")
        assert client.get("/health").status_code == 200
    assert set(codes) == {200, 400}
    print(
        f"{codes}; others: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s "
        f"of {len(seconds)}"
    )
