"""Measured cost: that it is measured, never how much it is."""

from mmap import mmap

import torch

from m3.evaluation.answering.engine import Engine
from m3.evaluation.cost.latency import PeakMemory, measure


def test_measure(engine: Engine):
    found = measure(
        engine.model, [1, 36], text_tokens=12, batch_sizes=(1, 3), repeats=3, warm_up=1, tokens=2
    )
    assert [(measured.batch_size, measured.scale) for measured in found] == [
        (1, 1),
        (1, 36),
        (3, 1),
        (3, 36),
    ]
    for measured in found:
        assert measured.first_token_s > 0
        assert measured.token_s > 0
        assert measured.first_token_spread_s >= 0
        assert measured.peak_bytes > 1 << 20
        assert (measured.repeats, measured.dtype) == (3, "float32")
        assert measured.device.startswith("CPU (")
        assert measured.tokens_per_s == measured.batch_size / measured.token_s
        assert measured.images_per_s == measured.batch_size / measured.first_token_s


def test_peak_memory_sees_what_is_gone_afterwards():
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with (
        PeakMemory(torch.device("cpu")) as peak,
        mmap(-1, 256 << 20) as block,
    ):  # memory that no allocator has kept from before
        for page in range(0, len(block), 4096):
            block[page] = 1
    assert peak.bytes > before.bytes + (128 << 20)
