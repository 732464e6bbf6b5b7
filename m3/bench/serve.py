"""`m3 bench serve`: a server under load, on this machine's loopback: clients at mixed scales, equal
answers, memory, a clean end.

1. what the questions are answered without a server, one after the other
2. many clients for some minutes: errors, answers that differ, seconds per scale, throughput against
   1., memory over time
3. one image at all scales against as many images: time, and how often the tower ran
4. SIGTERM while all clients wait for an answer: how many of the accepted requests were answered
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from m3.bench.serve_load import Question, Seen, ask, load
from m3.data.synthetic.suite import FAMILIES, test_row
from m3.inference import Conversation, Generation
from m3.inference import load as load_model

START_SECONDS = 180.0
SAMPLES = 20
"""Of the server's memory, over the whole load."""


def main(argv: list[str]) -> int:
    """Prints the four parts.

    1 where a request failed, an answer differs, the tower ran twice, or one was lost at the end.
    """
    parser = argparse.ArgumentParser(
        prog="m3 bench serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="playground/m3-tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--pictures", type=int, default=8, help="of each of the embedded suite's families"
    )
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the server's settings")
    arguments = parser.parse_intermixed_args(argv)
    questions, alone = prepare(arguments.model, arguments.pictures, arguments.max_tokens)
    scales = sorted({question.scale for question in questions})
    print(
        f"{len(questions)} questions at scales {scales}; alone, one after the other: "
        f"{1 / alone:.1f} a second"
    )
    with serving(arguments.model, arguments.settings) as server:
        load_replies, memory = asyncio.run(
            under_load(server, questions, arguments.clients, arguments.minutes * 60)
        )
        is_right = report_load(load_replies, memory, arguments.minutes * 60, alone)
        once = report_repeated(server, questions, scales)
        kept_answers = asyncio.run(report_end(server, questions, arguments.clients))
    return 0 if is_right and once and kept_answers else 1


# ---------------------------------------------------------------------- 1. without a server
def prepare(path: str, pictures: int, max_tokens: int) -> tuple[list[Question], float]:
    """Every question at every trained scale with its answer, and the median seconds of one."""
    model, processor = load_model(path)
    prepared_questions, seconds = [], []
    for family, picture_index in itertools.product(FAMILIES, range(pictures)):
        suite_row = test_row(family, picture_index, seed=0)
        for scale in processor.trained_scales:
            started = time.perf_counter()
            conversation = Conversation(model, processor, Generation(max_tokens))
            conversation.show_image(suite_row["image"]["bytes"])
            answer = conversation.ask(suite_row["question"], scale).text
            seconds.append(time.perf_counter() - started)
            prepared_questions.append(
                Question(
                    suite_row["image"]["bytes"], suite_row["question"], scale, max_tokens, answer
                )
            )
    return prepared_questions, statistics.median(seconds)


# ---------------------------------------------------------------------- the server
@dataclass(frozen=True)
class Server:
    """A process of its own; `log` has what it wrote."""

    process: subprocess.Popen[bytes]
    address: str
    name: str

    def memory(self) -> float:
        """MiB resident."""
        process_status = Path(f"/proc/{self.process.pid}/status").read_text()
        memory_match = re.search(r"VmRSS:\s+(\d+) kB", process_status)
        assert memory_match is not None  # Linux writes it
        return int(memory_match[1]) / 1024

    def metric(self, name: str) -> float:
        metrics_page = httpx2.get(f"{self.address}/metrics").text
        return sum(
            float(metrics_line.split()[-1])
            for metrics_line in metrics_page.splitlines()
            if metrics_line.startswith((f"{name} ", f"{name}{{"))
        )


@contextlib.contextmanager
def serving(model: str, settings: Sequence[str]) -> Iterator[Server]:
    """`m3 serve` on a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "m3.cli",
        "serve",
        "--model-path",
        model,
        "--port",
        str(port),
        *settings,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(process, f"http://127.0.0.1:{port}", Path(model).resolve().name)
    try:
        start_deadline = time.monotonic() + START_SECONDS
        while not _is_up(server):
            if process.poll() is not None or time.monotonic() > start_deadline:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _is_up(server: Server) -> bool:
    try:
        return httpx2.get(f"{server.address}/health").status_code == 200
    except httpx2.HTTPError:
        return False


# ---------------------------------------------------------------------- 2. load
async def under_load(
    server: Server, questions: Sequence[Question], clients: int, seconds: float
) -> tuple[list[Seen], list[float]]:
    """What the clients saw, and the server's memory over time."""
    memory: list[float] = []

    async def watch() -> None:
        for _ in range(SAMPLES):
            await asyncio.sleep(seconds / SAMPLES)
            memory.append(server.memory())

    load_replies, _ = await asyncio.gather(
        load(server.address, server.name, questions, clients, seconds), watch()
    )
    return load_replies, memory


def report_load(
    seen: Sequence[Seen], memory: Sequence[float], seconds: float, alone: float
) -> bool:
    """Whether all were answered, and as they would be alone."""
    error_texts = [load_reply.error for load_reply in seen if load_reply.error]
    wrong = sum(not load_reply.is_right for load_reply in seen if not load_reply.error)
    print(
        f"\n{len(seen)} requests in {seconds:.0f} s, {len(error_texts)} errors, {wrong} answers that "
        "differ"
    )
    for error_text in sorted(set(error_texts)):
        print(f"  {error_text}: {error_texts.count(error_text)}")
    print("scale  requests  seconds p50   p90   p99   first text p50   p99")
    for scale in sorted({load_reply.scale for load_reply in seen}):
        reply_seconds = [load_reply.seconds for load_reply in seen if load_reply.scale == scale]
        first = [
            load_reply.first_seconds
            for load_reply in seen
            if load_reply.scale == scale and load_reply.first_seconds is not None
        ]
        print(
            f"{scale:5d}  {len(reply_seconds):8d}  {_line(reply_seconds, (50, 90, 99))}  "
            f"{_line(first, (50, 99)):>20}"
        )
    rate = len(seen) / seconds
    print(
        f"throughput {rate:.1f} a second, {rate * alone:.2f}x that of one after the other "
        "without a server"
    )
    early, late = memory[len(memory) // 5 : 2 * len(memory) // 5], memory[-(len(memory) // 5) :]
    print(f"memory in MiB: {' '.join(f'{load_reply:.0f}' for load_reply in memory)}")
    print(
        "its growth from the second fifth to the last: "
        f"{statistics.mean(late) - statistics.mean(early):+.1f} MiB"
    )
    return not error_texts and not wrong


def _line(seconds: Sequence[float], percentiles: Sequence[int]) -> str:
    if len(seconds) < 2:
        return "-"
    cut = statistics.quantiles(seconds, n=100, method="inclusive")
    return "  ".join(f"{cut[percentile - 1]:10.3f}"[4:] for percentile in percentiles)


# ---------------------------------------------------------------------- 3. one image at all scales
def report_repeated(
    server: Server, questions: Sequence[Question], scales: Sequence[int], rounds: int = 6
) -> bool:
    """Turn about: a new image at every scale; as many new images, one at each scale."""
    pictures = (_marked(questions[0].image, picture_number) for picture_number in itertools.count())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    runs: dict[bool, set[float]] = {True: set(), False: set()}
    with httpx2.Client(base_url=server.address, timeout=60) as http:
        for turn in range(2 * rounds):
            is_same = turn % 2 == 0
            shown_pictures = (
                [next(pictures)] * len(scales) if is_same else [next(pictures) for _ in scales]
            )
            before, started = server.metric("m3_tower_runs_total"), time.perf_counter()
            for image, scale in zip(shown_pictures, scales, strict=True):
                body = Question(image, questions[0].text, scale, 1, "").body(
                    server.name, stream=False
                )
                http.post("/v1/chat/completions", json=body).raise_for_status()
            seconds[is_same].append(time.perf_counter() - started)
            runs[is_same].add(server.metric("m3_tower_runs_total") - before)
    ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
    print(
        f"\none image at {len(scales)} scales: tower runs {_set(runs[True])}; {len(scales)} "
        f"images: {_set(runs[False])}"
    )
    print(f"the one image takes {ratio:.2f} of the time of the {len(scales)}")
    return runs == {True: {1.0}, False: {float(len(scales))}}


def _marked(png: bytes, number: int) -> bytes:
    """The same picture as another file: a PNG may have anything behind its end."""
    return png + f"{number} {time.time_ns()}".encode()


def _set(values: set[float]) -> str:
    return ", ".join(f"{scale_value:g}" for scale_value in sorted(values))


# ---------------------------------------------------------------------- 4. the end
async def report_end(server: Server, questions: Sequence[Question], clients: int) -> bool:
    """Whether the server, told to end once it had accepted a request of every client, answered
    them all and ended by itself.
    """
    rng = random.Random(1)
    before = server.metric("m3_accepted_total")
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=server.address, timeout=120, limits=limits) as http:
        asked_tasks = [
            asyncio.ensure_future(ask(http, server.name, rng.choice(questions), n % 2 == 0))
            for n in range(clients)
        ]
        while await asyncio.to_thread(server.metric, "m3_accepted_total") - before < clients:
            await asyncio.sleep(0.01)
        waiting = sum(not asked_task.done() for asked_task in asked_tasks)
        server.process.send_signal(signal.SIGTERM)
        end_replies = await asyncio.gather(*asked_tasks)
    code = await asyncio.to_thread(server.process.wait)
    answered = sum(not asked_task.error and asked_task.is_right for asked_task in end_replies)
    print(
        f"\nSIGTERM with {waiting} of {clients} requests under way: {answered} of {clients} "
        f"answered, exit code {code}"
    )
    return answered == clients and code == 0
