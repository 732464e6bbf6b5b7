"""Measuring two things in one run: each in a process of its own for memory, turn about for time."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Wall seconds of every repetition in order, and CPU seconds of all threads, which other work on the machine moves less."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in seconds."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2


def alternate(tasks: Sequence[Callable[[], object]], repetitions: int, warm_up: int = 1) -> list[Timing]:
    """Runs the tasks turn about, so that whatever slows the machine slows all of them alike."""
    measured: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for repetition in range(warm_up + repetitions):
        for task, seconds in zip(tasks, measured, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            if repetition >= warm_up:
                seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [Timing(*map(tuple, zip(*seconds, strict=True))) for seconds in measured]


def matmul_peak(size: int = 1536, seconds: float = 1.0) -> float:
    """Floating-point operations per CPU second of square float32 products, with torch's threads as they are set."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    fastest, began = math.inf, time.process_time()
    while time.process_time() - began < seconds:
        start = time.process_time()
        left @ right
        fastest = min(fastest, time.process_time() - start)
    return 2 * size**3 / fastest


def peak_memory(task: Callable[..., object], *arguments: Any) -> int:
    """Bytes by which the resident memory of a fresh process peaks while it runs `task(*arguments)`.

    `task` must prepare itself, call the function it is given to mark the start, then do the work: `task(mark, ...)`.
    """
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_run, args=(queue, task, arguments))
    process.start()
    try:
        while True:
            if not queue.empty():
                return int(queue.get())
            if not process.is_alive() and queue.empty():
                raise RuntimeError(f"the process that measures memory ended with code {process.exitcode}")
            time.sleep(0.05)
    finally:
        process.join()


def _run(queue: Any, task: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    start: list[int] = []
    task(lambda: start.append(_resident("VmRSS")), *arguments)
    queue.put(_resident("VmHWM") - start[0])


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at the peak (VmHWM) of this process, on Linux.

    Not `getrusage`: its peak survives exec, so a spawned process starts with that of the process that spawned it.
    """
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
