"""Ray: arguments without it, then one cluster of two replicas on the loopback, of which one is
killed under load.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from openai import APIError, NotFoundError, OpenAI
from serving_files import ask, png

from m3.serving.cluster.config import Fleet, Served
from m3.serving.cluster.ray_app import app, check_room
from m3.serving.command import main

WRONG_ARGUMENTS = [
    ({}, "give model_path=FOLDER or fleet=FILE, and not both"),
    (
        {"model_path": "m3", "fleet": "fleet.yaml"},
        "give model_path=FOLDER or fleet=FILE, and not both",
    ),
    ({"model_path": "m3", "replica": "2"}, "unknown key 'replica'. Did you mean 'replicas'"),
    ({"model_path": "m3", "replicas": "two"}, "replicas: expected a whole number, got 'two'"),
    ({"fleet": {"models": []}}, "models is empty"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS)
def test_arguments_of_serve_run(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app(arguments)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--fleet", "FILE", "--dtype", "bfloat16"],
            "--dtype: a fleet's file says this for each of its models",
        ),
        (
            ["--fleet", "FILE", "name=mine"],
            "name is 'mine': a fleet's file names each of its models",
        ),
        (["--model-path", "m3", "--replicas", "0"], "replicas is 0; expected 1 or more"),
        (
            ["--model-path", "m3", "--replicas", "2", "--port", "0"],
            "port is 0; expected a port of its own",
        ),
    ],
)
def test_flags_that_exclude_each_other(argv: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("models: [{path: m3}]")
    with pytest.raises(ValueError, match=message):
        main([str(file) if one == "FILE" else one for one in argv])


def test_replicas_that_nobody_has_room_for() -> None:
    fleet = Fleet(
        models=(Served(path="m3", replicas=3, gpus=0.0), Served(path="n", cpus=0.5, gpus=0.0))
    )
    check_room(fleet, {"CPU": 3.5})
    with pytest.raises(
        ValueError,
        match=r"the replicas are to have 3.5 CPUs, and there are 3: .* "
        r"\(--replica-cpus",
    ):
        check_room(fleet, {"CPU": 3.0})


# ---------------------------------------------------------------------- one cluster
FLEET = """
models:
- {{name: first, path: {path}, device: cpu, replicas: 2, cpus: 0.2}}
- {{name: second, path: {path}, device: cpu, cpus: 0.2, max_replicas: 2, target_requests: 2, upscale_seconds: 1}}
"""
SERVER = "queue: {running: 8, waiting: 8, held_bytes: 67108864}"
TOKENS = 500
"""Of an answer: long enough to be under way when a replica is killed."""


class Cluster:
    """`m3 serve` on Ray, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        files = ["--fleet", str(folder / "fleet.yaml"), "--config", str(folder / "server.yaml")]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "m3.cli", "serve", *files, "--port", str(self.port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )

    def replicas(self, model: str) -> dict[str, float]:
        """Of those that answer: requests running, by name."""
        page = httpx.get(f"{self.address}/metrics", timeout=60).text
        head = f'm3_requests_running{{model="{model}",replica="'
        lines = [line.removeprefix(head) for line in page.splitlines() if line.startswith(head)]
        return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}

    def count(self, metric: str) -> float:
        page = httpx.get(f"{self.address}/metrics", timeout=60).text
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith(f"{metric}_total")
        )

    def processes(self, deployment: str) -> list[psutil.Process]:
        """Ray names a replica's process after its deployment."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in below if deployment in " ".join(one.cmdline()[:1])]

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=200)

    def wait(self, what: Callable[[], bool], seconds: float = 300) -> float:
        """How long it took until `what` was so."""
        begin = time.monotonic()
        while not what():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < begin + seconds, self.log.read_text()[-3000:]
            time.sleep(0.3)
        return time.monotonic() - begin

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def cluster(
    tiny_checkpoint: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    path = tiny_checkpoint(folder / "tiny")
    (folder / "fleet.yaml").write_text(FLEET.format(path=path))
    (folder / "server.yaml").write_text(SERVER)
    cluster = Cluster(folder)
    try:
        print(f"up after {cluster.wait(cluster.is_up, 500):.0f} s")
        yield cluster
    finally:
        cluster.process.terminate()
        try:
            cluster.process.wait(120)
        finally:
            cluster.process.kill()  # Ray's processes end with it


@pytest.mark.slow
@pytest.mark.parametrize("children", [1, 4])
def test_told_to_end_before_it_is_up_it_ends(tmp_path: Path, children: int) -> None:
    """While Ray starts, and while it makes the replicas."""
    (tmp_path / "fleet.yaml").write_text(FLEET.format(path="playground/m3-tiny"))
    (tmp_path / "server.yaml").write_text(SERVER)
    cluster = Cluster(tmp_path)
    process = psutil.Process(cluster.process.pid)
    try:
        cluster.wait(lambda: len(process.children(recursive=True)) >= children)
        below = process.children(recursive=True)
        cluster.process.terminate()
        assert cluster.process.wait(200) == 0, cluster.log.read_text()[-3000:]
    finally:
        cluster.process.kill()
    assert psutil.wait_procs(below, timeout=60)[1] == []
    assert "Traceback" not in cluster.log.read_text()


@pytest.mark.slow
def test_several_models_behind_one_address(cluster: Cluster) -> None:
    client = cluster.client()
    assert [model.id for model in client.models.list()] == ["first", "second"]
    options = {
        "messages": ask(png()),
        "max_tokens": 6,
        "extra_body": {"matryoshka_vis_token_scale": 9},
    }
    answers = [
        client.chat.completions.create(model=name, **options) for name in ("first", "second")
    ]
    assert [answer.model for answer in answers] == ["first", "second"]
    # of the same weights
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    with pytest.raises(
        NotFoundError, match="there is no model 'third' here; this server has 'first', 'second'"
    ):
        client.chat.completions.create(model="third", messages=ask())
    assert len(cluster.replicas("first")) == 2
    assert len(cluster.replicas("second")) == 1


def answer(client: OpenAI, number: int, model: str = "first") -> tuple[str, bool]:
    """Every other one as a stream. How it ended, and whether something had come by then."""
    options = {
        "model": model,
        "messages": ask(png(("red", "blue", "green")[number % 3])),
        "max_tokens": TOKENS,
        "extra_body": {"matryoshka_vis_token_scale": (1, 9, 36, 144)[number % 4]},
    }
    begun = False
    try:
        if number % 2:
            ends = []
            for chunk in client.chat.completions.create(**options, stream=True):
                begun = True
                ends.append(chunk.choices[0].finish_reason)
            return f"stream: {ends[-1]}", begun
        return f"whole: {client.chat.completions.create(**options).choices[0].finish_reason}", begun
    except APIError as error:
        return f"{type(error).__name__}: {error.message} ({error.code})", begun


@pytest.mark.slow
def test_full_queues_are_429_and_a_replica_is_added(cluster: Cluster) -> None:
    """16 places of the replica, 16 of the router; 48 ask at once."""
    with ThreadPoolExecutor(48) as pool:
        ended = list(
            pool.map(lambda number: answer(cluster.client(), number, "second")[0], range(48))
        )
    refused = [how for how in ended if "queues of all replicas" in how]
    answered = [how for how in ended if how.partition(": ")[2] in ("length", "stop")]
    print(f"{len(answered)} answered, {len(refused)} refused")
    assert len(answered) >= 16
    assert refused
    assert {how.partition(":")[0] for how in refused} == {"RateLimitError"}
    assert len(answered) + len(refused) == 48, ended
    seconds = cluster.wait(lambda: len(cluster.replicas("second")) == 2)
    print(f"the second replica was there {seconds:.0f} s later")


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_that_had_not_begun(cluster: Cluster) -> None:
    client = cluster.client()
    before = set(cluster.replicas("first"))

    def is_back() -> bool:
        now = set(cluster.replicas("first"))
        return len(now) == 2 and now != before

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(answer, client, number) for number in range(32)]
        cluster.wait(lambda: min(cluster.replicas("first").values()) >= 2)
        cluster.processes("0-first")[0].send_signal(signal.SIGKILL)
        seconds = cluster.wait(is_back)
        ended = [one.result() for one in asked]
    retried, interrupted = (
        cluster.count("m3_router_retried"),
        cluster.count("m3_router_interrupted"),
    )
    whole = [
        how
        for how, _ in ended
        if how in ("whole: length", "whole: stop", "stream: length", "stream: stop")
    ]
    broken = [(how, begun) for how, begun in ended if how not in whole]
    print(
        f"{len(ended)} requests: {len(whole)} answered, {retried:g} asked again, {interrupted:g} "
        "streams interrupted"
    )
    print(f"the replica was back after {seconds:.0f} s")
    assert all(begun and "(replica_died)" in how for how, begun in broken), broken
    assert len(broken) == interrupted
    assert retried + interrupted >= 1
    assert "length" in answer(client, 0)[0] or "stop" in answer(client, 0)[0]


@pytest.mark.slow
def test_its_end_answers_what_was_accepted(cluster: Cluster) -> None:
    client = cluster.client()
    below = psutil.Process(cluster.process.pid).children(recursive=True)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(answer, client, number) for number in range(6)]
        cluster.wait(lambda: sum(cluster.replicas("first").values()) == 6)
        cluster.process.terminate()
        ended = [one.result()[0] for one in asked]
    assert {how.partition(": ")[2] for how in ended} <= {"length", "stop"}, ended
    assert cluster.process.wait(120) == 0
    assert psutil.wait_procs(below, timeout=30)[1] == []  # Ray's processes have ended too
