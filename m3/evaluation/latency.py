"""What reading an image at a scale takes on this machine: time to the first token, time per token, peak memory.

In: a model, scales, a number of text tokens. Out: `Measured` per scale. One prompt with one image (of most tiles), batch of
one, random pixels and ids (the time depends on neither); the same steps as generation, without its bookkeeping.
"""

import os
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
    """Medians over `repeats`, with the distance between the quartiles. Seconds and bytes.

    `peak_bytes` on CUDA: `torch.cuda.max_memory_allocated` over the repeats (weights included). On a CPU: the largest
    resident set of the whole process, sampled every 2 ms while the repeats ran (weights, libraries and what the
    allocator kept from before included, so differences between scales say more than the value).
    """

    first_token_s: float
    first_token_spread_s: float
    token_s: float
    token_spread_s: float
    peak_bytes: int
    repeats: int


@torch.no_grad()
def measure(
    model: M3ForConditionalGeneration,
    scales: Sequence[int],
    text_tokens: int,
    repeats: int = 7,
    warm_up: int = 2,
    tokens: int = 8,
) -> dict[int, Measured]:
    """Per scale: the time from pixels to the first token, and of each of `tokens` further tokens.

    The scales take turns, so that what else the machine does falls on all of them alike.
    """
    firsts: dict[int, list[float]] = {scale: [] for scale in scales}
    steps: dict[int, list[float]] = {scale: [] for scale in scales}
    peaks = dict.fromkeys(scales, 0)
    for turn in range(warm_up + repeats):
        for scale in scales:
            with PeakMemory(model.device) as peak:
                first, step = _once(model, scale, text_tokens, tokens)
            if turn >= warm_up:
                firsts[scale].append(first)
                steps[scale].append(step)
                peaks[scale] = max(peaks[scale], peak.bytes)
    return {
        scale: Measured(
            statistics.median(firsts[scale]),
            _spread(firsts[scale]),
            statistics.median(steps[scale]),
            _spread(steps[scale]),
            peaks[scale],
            repeats,
        )
        for scale in scales
    }


def _once(model: M3ForConditionalGeneration, scale: int, text_tokens: int, tokens: int) -> tuple[float, float]:
    config, device = model.config, model.device
    size = vision_inputs(config.vision_config).image_size(config.vision_config)
    tiles = config.tiling.largest()
    pixels = torch.rand(tiles.number, 3, *size, device=device)
    known = {name: entry.to(device) for name, entry in tile_entries([tiles], config.tiling).items()}
    usable = [token for token in range(8) if token != config.image_token_id]
    text = torch.tensor(usable, device=device).repeat(text_tokens)[:text_tokens]
    ids = torch.cat([torch.full((config.reader.count(scale, tiles),), config.image_token_id, device=device), text])[
        None
    ]
    scales = torch.tensor([scale], device=device)
    started = _now(device)
    output = model(ids, pixel_values=pixels, image_scales=scales, **known, use_cache=True, logits_to_keep=1)
    token = _next(output.logits, config.image_token_id)
    first = _now(device) - started
    started = _now(device)
    for _ in range(tokens):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = _next(output.logits, config.image_token_id)
    return first, (_now(device) - started) / tokens


def _next(logits: Tensor, image_token_id: int) -> Tensor:
    """The greedy token; random weights may pick the placeholder, which no image would fill."""
    token = logits[:, -1].argmax(-1, keepdim=True)
    return torch.where(token == image_token_id, (token + 1) % logits.shape[-1], token)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _spread(values: list[float]) -> float:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
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
