"""`m3 serve` as a user starts it."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from serving_files import PATIENCE, ask, png, wait_until

from m3.serving.command import main, parse_options, read_settings, warn
from m3.serving.settings import Settings

CHAT = "/v1/chat/completions"


def settings(*argv: str) -> Settings:
    return read_settings(parse_options(["--model-path", "playground/m3-tiny", *argv]))


def test_settings_come_from_the_file_then_the_words_then_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("M3_API_KEY", raising=False)
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nlimits: {images: 3, frames: 5}\nallowed_hosts: [a.example]\n")
    found = settings("--config", str(file), "limits.images=4", "port=2", "--port", "3")
    assert (found.port, found.limits.images, found.limits.frames) == (3, 4, 5)
    assert found.allowed_hosts == ("a.example",)
    assert (found.name, found.host, found.api_key) == ("m3-tiny", "127.0.0.1", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("limits.image=4", "limits: unknown key 'image'. Did you mean 'images'"),
        ("limits.images=many", "limits.images: expected a whole number, got 'many'"),
        ("limits.images=0", "images is 0; expected more than 0"),
        ("queue.waiting=-1", "waiting is -1; expected 0 or more"),
        ("api_key=ä", "one line of printable ASCII"),
    ],
)
def test_a_wrong_setting_is_told(words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(words)


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3_API_KEY", "of the environment")
    assert settings().api_key == "of the environment"
    (tmp_path / "key").write_text("of the file\n")
    assert settings("--api-key-file", str(tmp_path / "key")).api_key == "of the file"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        settings("--api-key-file", str(tmp_path / "key"))


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("0.0.0.0", None, True),
        ("0.0.0.0", "k", False),
    ],
)
def test_listening_to_all_without_a_key_is_said(
    host: str, key: str | None, warns: bool, caplog
) -> None:
    with caplog.at_level(logging.INFO):
        warn(Settings(host=host, api_key=key))
    assert ("without an API key" in caplog.text) == warns


def test_a_run_is_served_under_its_name(tmp_path: Path) -> None:
    final = tmp_path / "charts" / "checkpoints" / "final"
    assert read_settings(parse_options(["--model-path", str(final)])).name == "charts"
    assert read_settings(parse_options(["--model-path", str(tmp_path / "m")])).name == "m"
    given = ["--model-path", str(final), "name=other"]
    assert read_settings(parse_options(given)).name == "other"


def test_a_port_in_use_is_said_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, port {port}: .*--port"):
            main(["--model-path", "no/such/model", "--host", "127.0.0.1", "--port", str(port)])
    with pytest.raises(ValueError, match="cannot listen at nowhere.invalid, port 8000"):
        main(["--model-path", "no/such/model", "--host", "nowhere.invalid"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "m3.cli",
        "serve",
        "--model-path",
        "playground/m3-tiny",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "queue.running=4"], stdout=log, stderr=log, env=dict(os.environ)
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx2.get(f"{address}/health", timeout=PATIENCE)
            break
        except httpx2.ConnectError:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
    yield process, address
    process.kill()
    process.wait()


@pytest.mark.slow
def test_told_to_end_it_answers_what_it_accepted(
    server: tuple[subprocess.Popen, str], tmp_path: Path
) -> None:
    """SIGTERM under load; half of the answers are streams."""
    process, address = server
    colours = ("red", "green", "blue", "white")
    bodies = [
        {
            "model": "m3-tiny",
            "messages": ask(png(colours[n % 4], (60 + n, 40))),
            "stream": n % 2 == 0,
        }
        for n in range(32)
    ]

    def post(body: dict) -> httpx2.Response:
        return httpx2.post(f"{address}{CHAT}", json=body, timeout=PATIENCE)

    def accepted() -> float:
        lines = httpx2.get(f"{address}/metrics", timeout=PATIENCE).text.splitlines()
        return next(
            float(line.split()[1]) for line in lines if line.startswith("m3_accepted_total")
        )

    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = [threads.submit(post, body) for body in bodies]
        wait_until(lambda: accepted() == len(bodies))
        process.send_signal(signal.SIGTERM)
        responses = [answer.result() for answer in answers]
    assert process.wait(PATIENCE) == 0
    for body, response in zip(bodies, responses, strict=True):
        assert response.status_code == 200
        if body["stream"]:
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(response.text)["choices"][0]["finish_reason"] == "stop"
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "base64" not in log


@pytest.mark.slow
def test_the_bench_of_the_server_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds instead of minutes: no error, equal answers, one look per image and resolution, nothing
    lost at the end.
    """
    from m3.bench.command import main

    assert (
        main(
            ["serve", "--minutes", "0.1", "--clients", "8", "--pictures", "1", "--max-tokens", "8"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "0 errors, 0 answers that differ" in said
    assert "one image at 10 scales: tower runs 3; 10 images: 10" in said
    assert "8 of 8 answered, exit code 0" in said
