"""Latency of reading an image at a scale on this machine: time to the first token, time per token,
peak memory.

In: a model, scales, a number of text tokens, batch sizes. Out: a `Measured` per scale and batch
size. Every prompt has one image, of most tiles; pixels and ids are random (the time of a dense
model depends on neither; a router may send random tokens elsewhere than real ones); the same steps
as generation, without its bookkeeping. Nothing here is an estimate: those are in roofline.py.
"""

import os
import platform
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from m3.model import M3ForConditionalGeneration
from m3.model.vision import vision_inputs
from m3.processing.tiles import tile_entries


@dataclass(frozen=True)
class Measured:
    """Medians over `repeats`, with the distance between the quartiles, of a whole batch.

    Seconds and bytes.

    `peak_bytes` on CUDA: `torch.cuda.max_memory_allocated` over the repeats (weights included). On
    a CPU: the largest resident set of the whole process, sampled every 2 ms while the repeats ran
    (weights, libraries and what the allocator kept from before included, so differences between
    scales say more than the value).
    """

    scale: int
    batch_size: int
    first_token_s: float  # from pixels to the first token of every prompt
    first_token_spread_s: float
    token_s: float  # of each further token of every prompt
    token_spread_s: float
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


@dataclass
class _Series:
    firsts: list[float]
    steps: list[float]
    peak: int


@torch.no_grad()
def measure(
    model: M3ForConditionalGeneration,
    scales: Sequence[int],
    text_tokens: int,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 7,
    warm_up: int = 2,
    tokens: int = 8,
) -> list[Measured]:
    """Per batch size and scale: the time from pixels to the first token, and of each of `tokens`
    further tokens.

    The scales take turns, so that what else the machine does falls on all of them alike.
    """
    repetitions = []
    for batch_size in batch_sizes:
        series = {scale: _Series([], [], 0) for scale in scales}
        for turn in range(warm_up + repeats):
            for scale in scales:
                with PeakMemory(model.device) as peak:
                    first_seconds, step_seconds = _once(
                        model, scale, text_tokens, batch_size, tokens
                    )
                if turn >= warm_up:
                    series[scale].firsts.append(first_seconds)
                    series[scale].steps.append(step_seconds)
                    series[scale].peak = max(series[scale].peak, peak.bytes)
        repetitions += [_summary(model, scale, batch_size, series[scale]) for scale in scales]
    return repetitions


def _summary(
    model: M3ForConditionalGeneration, scale: int, batch_size: int, series: _Series
) -> Measured:
    return Measured(
        scale=scale,
        batch_size=batch_size,
        first_token_s=statistics.median(series.firsts),
        first_token_spread_s=_spread(series.firsts),
        token_s=statistics.median(series.steps),
        token_spread_s=_spread(series.steps),
        peak_bytes=series.peak,
        repeats=len(series.firsts),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def device_name(device: torch.device) -> str:
    """As the maker calls it; of a CPU, what the platform says, and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.processor() or platform.machine()}), {torch.get_num_threads()} threads"


def _once(
    model: M3ForConditionalGeneration, scale: int, text_tokens: int, batch_size: int, tokens: int
) -> tuple[float, float]:
    config, device = model.config, model.device
    size = vision_inputs(config.vision_config).image_size(config.vision_config)
    tiles = [config.tiling.largest()] * batch_size
    pixels = torch.rand(sum(image.number for image in tiles), 3, *size, device=device)
    known_entries = {
        entry_name: entry_value.to(device)
        for entry_name, entry_value in tile_entries(tiles, config.tiling).items()
    }
    usable = [token for token in range(8) if token != config.image_token_id]
    text_ids = torch.tensor(usable, device=device).repeat(text_tokens)[:text_tokens]
    visual = torch.full(
        (config.reader.count(scale, tiles[0]),), config.image_token_id, device=device
    )
    ids = torch.cat([visual, text_ids]).expand(batch_size, -1)
    scales = torch.tensor([scale] * batch_size, device=device)
    started = _now(device)
    output = model(
        ids,
        pixel_values=pixels,
        image_scales=scales,
        **known_entries,
        use_cache=True,
        logits_to_keep=1,
    )
    token = _next(output.logits, config.image_token_id)
    first_seconds = _now(device) - started
    started = _now(device)
    for _ in range(tokens):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = _next(output.logits, config.image_token_id)
    return first_seconds, (_now(device) - started) / tokens


def _next(logits: Tensor, image_token_id: int) -> Tensor:
    """The greedy token; random weights may pick the placeholder, which no image would fill."""
    token = logits[:, -1].argmax(-1, keepdim=True)
    return torch.where(token == image_token_id, (token + 1) % logits.shape[-1], token)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _spread(sorted_values: list[float]) -> float:
    quarters = (
        statistics.quantiles(sorted_values, n=4)
        if len(sorted_values) > 1
        else [sorted_values[0]] * 3
    )
    return quarters[2] - quarters[0]


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
