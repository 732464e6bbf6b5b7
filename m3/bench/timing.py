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
    """Wall seconds of every repetition in order, and CPU seconds of all threads, which other
    work on the machine moves less.
    """

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
        low_quartile, _, high_quartile = statistics.quantiles(self.seconds, n=4)
        return (high_quartile - low_quartile) / 2


CPU = torch.device("cpu")


def alternate(
    tasks: Sequence[Callable[[], object]],
    repetitions: int,
    warm_up: int = 1,
    device: torch.device = CPU,
) -> list[Timing]:
    """Runs the tasks turn about, so that whatever slows the machine slows all of them alike.

    device: waited for before and after each task, since an accelerator works on while Python goes
        ahead.
    """
    measured: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for repetition in range(warm_up + repetitions):
        for task, seconds in zip(tasks, measured, strict=True):
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            synchronize(device)
            if repetition >= warm_up:
                seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [Timing(*map(tuple, zip(*seconds, strict=True))) for seconds in measured]


def synchronize(device: torch.device) -> None:
    """Waits for what an accelerator has been given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_peak(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32, seconds: float = 1.0
) -> float:
    """Floating-point operations per second of square products: CPU seconds with torch's threads
    as set, else wall seconds.
    """
    clock, matrix_size = (
        (time.process_time, 1536) if device.type == "cpu" else (time.perf_counter, 8192)
    )
    left_matrix, right_matrix = (
        torch.randn(matrix_size, matrix_size, device=device, dtype=dtype) for _ in range(2)
    )
    fastest, began = math.inf, clock()
    while clock() - began < seconds:
        synchronize(device)
        start_time = clock()
        left_matrix @ right_matrix
        synchronize(device)
        fastest = min(fastest, clock() - start_time)
    return 2 * matrix_size**3 / fastest


def peak_device_memory(task: Callable[[], object], device: torch.device) -> int:
    """Bytes of an accelerator's memory by which tensors peak above rest while `task` runs in
    this process.
    """
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    rest = torch.accelerator.memory_allocated(device)
    task()
    synchronize(device)
    return torch.accelerator.max_memory_allocated(device) - rest


def peak_memory(task: Callable[..., object], *arguments: Any) -> int:
    """Bytes by which the resident memory of a fresh process peaks while it runs `task(*arguments)`.

    `task` must prepare itself, call the function it is given to mark the start, then do the work:
    `task(mark, ...)`.
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
                raise RuntimeError(
                    f"the process that measures memory ended with code {process.exitcode}"
                )
            time.sleep(0.05)
    finally:
        process.join()


def _run(queue: Any, task: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    start_bytes: list[int] = []
    task(lambda: start_bytes.append(_resident("VmRSS")), *arguments)
    queue.put(_resident("VmHWM") - start_bytes[0])


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at the peak (VmHWM) of this process, on Linux.

    Not `getrusage`: its peak survives exec, so a spawned process starts with that of the process
        that spawned it.
    """
    with open("/proc/self/status") as status_file:
        field_line = next(
            field_line for field_line in status_file if field_line.startswith(f"{field}:")
        )
    return int(field_line.split()[1]) * 1024
