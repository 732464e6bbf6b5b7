"""Measuring in one run: time of tasks that alternate, memory of a task in its own process."""

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
    """Wall seconds and CPU seconds of every repetition (other work disturbs the latter less)."""

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


CPU = torch.device("cpu")


def alternate(
    tasks: Sequence[Callable[[], object]],
    repetitions: int,
    warm_up: int = 1,
    device: torch.device = CPU,
) -> list[Timing]:
    """Run the tasks in turn, so that other load on the machine slows all of them alike.

    device: synchronised before and after each task, since an accelerator runs asynchronously.
    """
    task_seconds: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for repetition in range(warm_up + repetitions):
        for task, repetition_seconds in zip(tasks, task_seconds, strict=True):
            synchronize(device)
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            task()
            synchronize(device)
            if repetition >= warm_up:
                wall_seconds = time.perf_counter() - wall_start
                repetition_seconds.append((wall_seconds, time.process_time() - cpu_start))
    return [Timing(*map(tuple, zip(*seconds, strict=True))) for seconds in task_seconds]


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_peak(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32, seconds: float = 1.0
) -> float:
    """Floating-point operations per second (on a CPU: CPU second) of square matrix products."""
    clock, size = (time.process_time, 1536) if device.type == "cpu" else (time.perf_counter, 8192)
    left_matrix, right_matrix = (
        torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)
    )
    fastest_seconds, first_start = math.inf, clock()
    while clock() - first_start < seconds:
        synchronize(device)
        product_start = clock()
        left_matrix @ right_matrix
        synchronize(device)
        fastest_seconds = min(fastest_seconds, clock() - product_start)
    return 2 * size**3 / fastest_seconds


def peak_device_memory(task: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors on an accelerator above rest while `task` runs in this process."""
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    rest_bytes = torch.accelerator.memory_allocated(device)
    task()
    synchronize(device)
    return torch.accelerator.max_memory_allocated(device) - rest_bytes


def peak_memory(task: Callable[..., object], *arguments: Any) -> int:
    """Peak bytes of resident memory above the start while a fresh process runs `task`.

    `task(mark_start, *arguments)` must prepare itself, call `mark_start()`, then do the work.
    """
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_task, args=(queue, task, arguments))
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


def _measure_task(queue: Any, task: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    start: list[int] = []
    task(lambda: start.append(_memory_field("VmRSS")), *arguments)
    queue.put(_memory_field("VmHWM") - start[0])


def _memory_field(field_name: str) -> int:
    """Resident bytes of this process now (VmRSS) or at the peak (VmHWM), on Linux.

    Not `getrusage`: its peak survives exec, so a spawned process starts with its parent's.
    """
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field_name}:"))
    return int(line.split()[1]) * 1024
