"""A server in a process of its own, as the benches of serving start and watch it (Linux: /proc).

In: a model's folder and the server's settings. Out: a `Server`, which ends with its block.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

START_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    """A server process on the loopback."""

    process: subprocess.Popen[bytes]
    address: str
    name: str

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None  # Linux writes it
        return int(match[1]) / 1024

    def cpu_seconds(self) -> float:
        """CPU seconds of all its threads so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user_ticks, system_ticks = stat.rpartition(")")[2].split()[11:13]
        return (int(user_ticks) + int(system_ticks)) / os.sysconf("SC_CLK_TCK")

    def metric(self, name: str) -> float:
        metrics_text = httpx2.get(f"{self.address}/metrics").text
        return sum(
            float(line.split()[-1])
            for line in metrics_text.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        )

    def pictures(self) -> Counter[str]:
        """Pictures read so far, by their scale."""
        counted = re.findall(
            r'^m3_pictures_total\{scale="(.+?)"\} (\S+)$',
            httpx2.get(f"{self.address}/metrics").text,
            re.MULTILINE,
        )
        return Counter({scale: int(float(count)) for scale, count in counted})


@contextlib.contextmanager
def start_server(model_path: str, settings: Sequence[str]) -> Iterator[Server]:
    """Run `m3 serve` on a free port of the loopback, and end it after the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "m3.cli",
        "serve",
        "--model-path",
        model_path,
        "--port",
        str(port),
        *settings,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(process, f"http://127.0.0.1:{port}", Path(model_path).resolve().name)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_up(server):
            if process.poll() is not None or time.monotonic() > deadline:
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
