"""`m3 bench step`: one all-scales training step, ours (one tower and packed decoder passes) against
the published loop.

The published way runs tower, connector and decoder once per scale and computes logits at every
place (m3/bench/published.py). All steps are run in turns in one process. On a CPU, speeds are of
CPU seconds, and memory is the peak above rest of a process of its own; on an accelerator they are
wall seconds and the peak of its memory above the weights. The use of the machine is the step's
floating-point operations (causal half of attention, three passes of what is trained) per second, of
those of a square product in the same run. Gradients are compared in up to `GRADIENT_VALUES` values
of each parameter.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from m3.bench.published import published_batches, published_loss
from m3.bench.shapes import SHAPES
from m3.bench.timing import Timing, alternate, matmul_peak, peak_device_memory, peak_memory
from m3.data.collate import Collator
from m3.evaluation.cost.latency import device_name
from m3.model.cost import CostModel, head_dim
from m3.model.packing_check import choose_packed_attention

PUBLISHED = "published"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Largest relative difference of gradients from the published loop's; float32 rounds to 1e-6,
bfloat16 to 1e-2.
"""
GRADIENT_VALUES = 2**24
"""Values of one parameter's gradient that are compared, evenly spread; seven billion twice over
would not fit a GPU.
"""


@dataclass(frozen=True)
class Setting:
    """What is measured. `rounds`: questions kept of each picture; 0 keeps all."""

    shape: str
    model: str | None
    scales: tuple[int, ...]
    images: int
    rounds: int
    pack_lengths: tuple[int, ...]
    tower: str
    threads: int
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def ways(self) -> list[str]:
        """The published loop, then ours at each length of rows."""
        return [PUBLISHED, *map(str, self.pack_lengths)]


def main(argv: list[str]) -> int:
    """Prints seconds, memory and ratios; the last line is the smallest ratio.

    1 when gradients differ.
    """
    parser = argparse.ArgumentParser(
        prog="m3 bench step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default="tiny", help="what is measured (m3/bench/shapes.py)"
    )
    parser.add_argument("--model", help="a checkpoint folder, for --shape tiny")
    parser.add_argument(
        "--matryoshka_vis_token_scale", help="scales of the step, by default those of the shape"
    )
    parser.add_argument(
        "--images", type=int, help="pictures in a step, by default as many as the shape says"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="questions kept of each picture; 0: all of them"
    )
    parser.add_argument("--pack-lengths", help="tokens of a row, one measurement for each")
    parser.add_argument("--towers", help="frozen, trained or both, separated by a comma")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type of weights and states"
    )
    arguments = parser.parse_args(argv)
    shape = SHAPES[arguments.shape]
    scales = _numbers(arguments.matryoshka_vis_token_scale or shape.scales)
    lengths = _numbers(arguments.pack_lengths or shape.pack_lengths)
    towers = tuple(arguments.towers.split(",")) if arguments.towers else shape.towers
    images = arguments.images or shape.images
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    peak = matmul_peak(device, dtype)
    device_text = f"{arguments.threads} threads" if device.type == "cpu" else device_name(device)
    print(f"{arguments.shape}: {arguments.model or shape.title}")
    print(
        f"{images} pictures, scales {list(scales)}, {device_text}, {arguments.repetitions} repetitions"
    )
    second = "CPU second" if device.type == "cpu" else "second"
    print(f"{arguments.dtype} product: {peak / 1e9:.1f} GFLOP per {second}")
    print(HEADER)
    table_rows: list[Row] = []
    for tower in towers:
        setting = Setting(
            arguments.shape,
            arguments.model,
            scales,
            images,
            arguments.rounds,
            lengths,
            tower,
            arguments.threads,
            arguments.device,
            arguments.dtype,
        )
        table_rows += measure(setting, arguments.repetitions, peak)
    print(f"worst: {min(table_row.speed for table_row in table_rows):.2f}x")
    return 0 if max(table_row.error for table_row in table_rows) <= TOLERANCE[dtype] else 1


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


HEADER = (
    f"{'tower':9}{'rows of':>10}{'rows':>6}{'fill':>7}{'wall s':>9}{'+-':>7}{'CPU s':>9}{'tokens/s':>10}{'speed':>8}"
    f"{'peak MiB':>10}{'memory':>8}{'use':>7}{'gradient':>10}"
)


@dataclass(frozen=True)
class Row:
    """One line of the table: ours at a length of rows, its CPU seconds and memory against the
    published loop's.
    """

    speed: float
    error: float


def measure(setting: Setting, repetitions: int, peak: float) -> list[Row]:
    """Runs all ways in turns and prints a line for each."""
    bench = StepBench(setting)
    expected = bench.gradient(PUBLISHED)
    gradient_errors = {
        way: relative_difference(bench.gradient(way), expected) for way in setting.ways
    }
    step_calls = [lambda way=way: bench.step(way) for way in setting.ways]
    timings = dict(
        zip(setting.ways, alternate(step_calls, repetitions, device=bench.device), strict=True)
    )
    memory = {way: bench.memory(way) for way in setting.ways}
    table_rows = []
    for way in setting.ways:
        timing, use = timings[way], bench.flops(way) / bench.seconds(timings[way]) / peak
        speed = bench.seconds(timings[PUBLISHED]) / bench.seconds(timing)
        print(
            _line(
                setting.tower,
                way,
                bench,
                timing,
                speed,
                memory[way],
                memory[PUBLISHED],
                use,
                gradient_errors[way],
            )
        )
        if way != PUBLISHED:
            table_rows.append(Row(speed, gradient_errors[way]))
    return table_rows


def _line(
    tower: str,
    way: str,
    bench: "StepBench",
    timing: Timing,
    speed: float,
    memory: int,
    published_memory: int,
    use: float,
    error: float,
) -> str:
    row_count, place_count = bench.rows(way)
    rate = bench.tokens / bench.seconds(timing)
    return (
        f"{tower:9}{way:>10}{row_count:>6}{bench.tokens / place_count:7.2f}"
        f"{timing.median:9.2f}{timing.spread:7.2f}{timing.cpu_median:9.2f}"
        f"{rate:10.0f}{speed:7.2f}x{memory / 2**20:10.0f}{memory / published_memory:7.2f}x{use:7.0%}{error:10.1e}"
    )


class StepBench:
    """A model, and for each way of a step its batches, made beforehand."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        self.setting, shape = setting, SHAPES[setting.shape]
        self.device, dtype = torch.device(setting.device), DTYPES[setting.dtype]
        with self.device, default_dtype(dtype):
            self.model, processor = shape.load(setting.model, setting.scales)
        # transformers' `to` has no types
        cast(nn.Module, self.model).to(self.device, dtype).train()
        self.model.model.vision_tower.requires_grad_(setting.tower == "trained")
        self.model.model.freeze_unread()
        self.decoder = self.model.model.language_model
        self.native = self.decoder.config._attn_implementation
        packed_choice = choose_packed_attention(
            self.model.config.text_config, dtype == torch.bfloat16
        )
        self.packed = packed_choice.implementation or self.native
        samples = shape.make_samples(processor, setting.images, setting.rounds)
        self.loop = [
            self._move(batch) for batch in published_batches(samples, processor, setting.scales)
        ]
        self.batches = {
            str(length): self._move(
                Collator(processor, scales=setting.scales, pack_length=length)(samples)
            )
            for length in setting.pack_lengths
        }
        self.tower_passes = 3 if setting.tower == "trained" else 1
        self.tokens = int(sum(batch["attention_mask"].sum() for batch in self.loop))

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            input_name: input_value.to(self.device) for input_name, input_value in batch.items()
        }

    def seconds(self, timing: Timing) -> float:
        """What counts: CPU seconds of a CPU, which other work on it moves less, wall seconds of
        an accelerator.
        """
        return timing.cpu_median if self.device.type == "cpu" else timing.median

    def memory(self, way: str) -> int:
        """Bytes by which a step peaks above rest; gradients are part of it."""
        if self.device.type == "cpu":
            return peak_memory(run_once, self.setting, way)
        self.model.zero_grad()
        return peak_device_memory(lambda: self.step(way), self.device)

    def loss(self, way: str) -> Tensor:
        """Each way with the attention that it would be run with."""
        self.decoder.set_attn_implementation(self.native if way == PUBLISHED else self.packed)
        return (
            published_loss(self.model, self.loop)
            if way == PUBLISHED
            else self.model(**self.batches[way]).loss
        )

    def step(self, way: str) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        self.loss(way).backward()

    def gradient(self, way: str) -> Tensor:
        """Gradients of all parameters in a row, after one step."""
        self.step(way)
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat(
            [
                gradient_values[:: 1 + gradient_values.numel() // GRADIENT_VALUES]
                for gradient_values in gradients
            ]
        )

    def rows(self, way: str) -> tuple[int, int]:
        """Rows of the decoder's batches, and places in them."""
        batches = self.loop if way == PUBLISHED else [self.batches[way]]
        ids = [batch["input_ids"] for batch in batches]
        return sum(len(rows) for rows in ids), sum(rows.numel() for rows in ids)

    def flops(self, way: str) -> float:
        """Operations that the step needs: real tokens, half of attention's square, what is
        trained three times.
        """
        costs, config = CostModel(self.model), self.model.config
        width = (
            costs.decoder_layers
            * config.text_config.num_attention_heads
            * head_dim(config.text_config)
        )
        batches = self.loop if way == PUBLISHED else [self.batches[way]]
        sequence_lengths = torch.cat([_lengths(batch) for batch in batches]).double()
        decoder = float(
            (
                2 * sequence_lengths * costs.decoder.active(costs.top_k)
                + 2 * sequence_lengths.square() * width
            ).sum()
        )
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        heads = (
            sum(batch["input_ids"].numel() for batch in batches) if way == PUBLISHED else targets
        )
        tiles = sum(len(batch["pixel_values"]) for batch in batches)
        tower = tiles * (self.tower_passes * costs.vision_flops() + 3 * costs.connector_flops())
        return 3 * (decoder + 2.0 * heads * costs.head) + tower


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Floating-point tensors are made in this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _lengths(batch: dict[str, Tensor]) -> Tensor:
    """Lengths of the sequences of a batch, packed or padded."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(1)
    return batch["sequence_lengths"][batch["sequence_lengths"] > 0]


def relative_difference(first_vector: Tensor, second_vector: Tensor) -> float:
    """Norm of the difference of two vectors, by the norm of the second."""
    return float((first_vector - second_vector).float().norm() / second_vector.float().norm())


def run_once(mark: Callable[[], None], setting: Setting, way: str) -> None:
    """One step in a fresh process, after `mark` has noted the memory at rest."""
    bench = StepBench(setting)
    mark()
    bench.step(way)
