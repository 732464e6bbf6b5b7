"""Latency of reading an image at a budget on this machine: time to the first token, time per token,
peak memory.

In: a model, budgets, a number of text tokens, batch sizes. Out: a `Measured` per budget and batch
size. Every prompt has one image, of most tiles; pixels and ids are random (the time of a dense
model depends on neither; a router may send random tokens elsewhere than real ones); the same steps
as generation, without its bookkeeping. Nothing here is an estimate: those are in roofline.py.

What else a machine does only ever adds to a time, so of many short repetitions a low quantile is
taken, not the median: it is what the model takes when it is left alone. The budgets take turns, so
that a slow minute falls on all alike. Two budgets whose times are nearer to each other than the
same measurement comes to itself (`Measured.first_token_spread_s`) have no measurable difference
(`levels`).
"""

import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import psutil
import torch
from torch import Tensor

from m3.model import M3ForConditionalGeneration
from m3.model.vision import vision_inputs
from m3.nesting import read_budget
from m3.processing.tiles import tile_entries

REPEATS, LEAST_REPEATS = 40, 8
TURN_SECONDS = 30.0
"""After so long no further turn of a batch size begins, once it has `LEAST_REPEATS`."""
LOW = 0.1
"""The quantile of the repetitions that counts as the time."""
PARTS = 4
"""Parts of the repetitions, one after the other, whose quantiles are compared for the spread."""
NO_DIFFERENCE = "no measurable difference"


@dataclass(frozen=True)
class Measured:
    """The 10 % quantile over `repeats`, of a whole batch. Seconds and bytes.

    Spread: how far the quantiles of four successive parts of the repetitions are apart. CPU: the
    time that all threads of the process ran, which other processes do not add to; of a GPU it is
    that of its host. `peak_bytes` on CUDA: `torch.cuda.max_memory_allocated` of a repetition
    (weights included). On a CPU: the largest resident set of the whole process, sampled every 2 ms
    in a repetition of its own (weights, libraries and what the allocator kept from before included,
    so differences between budgets say more than the value).
    """

    scale: int | str
    batch_size: int
    first_token_s: float  # from pixels to the first token of every prompt
    first_token_spread_s: float
    first_token_cpu_s: float
    first_token_cpu_spread_s: float
    token_s: float  # of each further token of every prompt
    token_spread_s: float
    token_cpu_s: float
    peak_bytes: int
    repeats: int
    device: str
    dtype: str

    @property
    def tokens_per_s(self) -> float:
        """Throughput of generation after the first token."""
        return self.batch_size / self.token_s

    @property
    def images_per_s(self) -> float:
        """Throughput of seeing and reading."""
        return self.batch_size / self.first_token_s


@dataclass(frozen=True)
class Level:
    """Budgets whose times cannot be told apart, and the time of them all: the mean of theirs."""

    scales: tuple[int | str, ...]
    seconds: float


@dataclass(frozen=True)
class Seconds:
    """Wall-clock and CPU time of one repetition."""

    wall: float
    cpu: float


@dataclass
class _Series:
    """The repetitions at a budget, in the order they ran."""

    firsts: list[Seconds] = field(default_factory=list)
    steps: list[Seconds] = field(default_factory=list)
    peak: int = 0


@torch.no_grad()
def measure(
    model: M3ForConditionalGeneration,
    scales: Sequence[int | str],
    text_tokens: int,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = REPEATS,
    warm_up: int = 2,
    tokens: int = 8,
) -> list[Measured]:
    """Per batch size and budget: the time from pixels to the first token, and of each of `tokens`
    further tokens.

    The budgets take turns; memory is watched in a turn of its own, since watching takes time.
    """
    measurements = []
    for batch_size in batch_sizes:
        series = {scale: _Series() for scale in scales}
        for scale in scales:
            for _ in range(warm_up):
                _once(model, scale, text_tokens, batch_size, tokens)
            with PeakMemory(model.device) as peak:
                _once(model, scale, text_tokens, batch_size, tokens)
            series[scale].peak = peak.bytes
        started = time.perf_counter()
        with _no_collection():
            for turn in range(repeats):
                if turn >= LEAST_REPEATS and time.perf_counter() - started > TURN_SECONDS:
                    break
                for scale in scales:
                    first, step = _once(model, scale, text_tokens, batch_size, tokens)
                    series[scale].firsts.append(first)
                    series[scale].steps.append(step)
        measurements += [_summary(model, scale, batch_size, series[scale]) for scale in scales]
    return measurements


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage is collected before, not in the midst of some repetition."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _summary(
    model: M3ForConditionalGeneration, scale: int | str, batch_size: int, series: _Series
) -> Measured:
    firsts, steps = ([seconds.wall for seconds in kind] for kind in (series.firsts, series.steps))
    cpu_firsts = [seconds.cpu for seconds in series.firsts]
    return Measured(
        scale=scale,
        batch_size=batch_size,
        first_token_s=low_quantile(firsts),
        first_token_spread_s=spread(firsts),
        first_token_cpu_s=low_quantile(cpu_firsts),
        first_token_cpu_spread_s=spread(cpu_firsts),
        token_s=low_quantile(steps),
        token_spread_s=spread(steps),
        token_cpu_s=low_quantile([seconds.cpu for seconds in series.steps]),
        peak_bytes=series.peak,
        repeats=len(series.firsts),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def low_quantile(repetitions: Sequence[float]) -> float:
    """The `LOW` quantile, between the neighbouring values where none is exactly there."""
    if len(repetitions) == 1:
        return repetitions[0]
    return statistics.quantiles(repetitions, n=round(1 / LOW), method="inclusive")[0]


def spread(repetitions: Sequence[float]) -> float:
    """Distance between the largest and the smallest of the low quantiles of `PARTS` successive
    parts of the repetitions.
    """
    count = min(PARTS, len(repetitions))
    edges = [round(part * len(repetitions) / count) for part in range(count + 1)]
    lows = [low_quantile(repetitions[start:end]) for start, end in pairwise(edges)]
    return max(lows) - min(lows)


def levels(times: Iterable[tuple[int | str, float, float]]) -> list[Level]:
    """Groups of budgets without a measurable difference, of (budget, seconds, spread), fastest
    first.

    A budget joins the group before it where it is no farther from the fastest there than the larger
    spread of the two.
    """
    groups: list[list[tuple[int | str, float, float]]] = []
    for timed in sorted(times, key=lambda timed: timed[1]):
        _, seconds, own_spread = timed
        if groups and seconds - groups[-1][0][1] <= max(own_spread, groups[-1][0][2]):
            groups[-1].append(timed)
        else:
            groups.append([timed])
    return [
        Level(
            tuple(sorted((scale for scale, _, _ in group), key=read_budget)),
            statistics.fmean(seconds for _, seconds, _ in group),
        )
        for group in groups
    ]


def device_name(device: torch.device) -> str:
    """As the maker calls it; of a CPU, what the platform says, and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}), {torch.get_num_threads()} threads"


def _once(
    model: M3ForConditionalGeneration,
    scale: int | str,
    text_tokens: int,
    batch_size: int,
    tokens: int,
) -> tuple[Seconds, Seconds]:
    """Seconds to the first token, and of each of `tokens` further ones."""
    config, device, budget = model.config, model.device, read_budget(scale)
    image = config.tiles(budget.resolution)
    side = config.tile_side(budget.resolution)
    encoder = vision_inputs(config.vision_config)
    is_largest = budget.resolution is None
    size = encoder.image_size(config.vision_config) if is_largest else (side, side)
    pixels = torch.rand(batch_size * image.number, 3, *size, device=device)
    known_entries = {
        entry_name: entry_value.to(device)
        for entry_name, entry_value in tile_entries([image] * batch_size, config.tiling).items()
    }
    usable = [token for token in range(8) if token != config.image_token_id]
    text_ids = torch.tensor(usable, device=device).repeat(text_tokens)[:text_tokens]
    visual = torch.full((config.count(budget),), config.image_token_id, device=device)
    ids = torch.cat([visual, text_ids]).expand(batch_size, -1)
    scales = torch.tensor([budget.tokens] * batch_size, device=device)
    started = now(device)
    output = model(
        ids,
        pixel_values=pixels,
        image_scales=scales,
        **known_entries,
        use_cache=True,
        logits_to_keep=1,
    )
    token = _next(output.logits, config.image_token_id)
    first = since(started, device)
    started = now(device)
    for _ in range(tokens):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = _next(output.logits, config.image_token_id)
    steps = since(started, device)
    return first, Seconds(steps.wall / tokens, steps.cpu / tokens)


def _next(logits: Tensor, image_token_id: int) -> Tensor:
    """The greedy token; random weights may pick the placeholder, which no image would fill."""
    token = logits[:, -1].argmax(-1, keepdim=True)
    return torch.where(token == image_token_id, (token + 1) % logits.shape[-1], token)


def now(device: torch.device) -> Seconds:
    """The clocks, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


def since(started: Seconds, device: torch.device) -> Seconds:
    """What passed since `now` was asked."""
    ended = now(device)
    return Seconds(ended.wall - started.wall, ended.cpu - started.cpu)


class PeakMemory:
    """`bytes` is the peak while the block ran; see `Measured`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        process = psutil.Process(os.getpid())
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._stop.wait(0.002):
                return

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._thread.join()
