"""`m3 bench step`: an all-scales training step, one tower pass and packed rows, against M3's loop.

The published loop runs tower, connector and decoder once per scale and computes logits at every
position (m3/bench/published.py). The steps alternate in one process. On a CPU, speeds are of CPU
seconds, and memory is the peak above rest of a process of its own; on an accelerator they are wall
seconds and the peak of its memory above the weights. The use of the machine is the step's
floating-point operations per second (causal half of attention, three passes of trained modules)
relative to those of a square matrix product in the same run. Gradients are compared in up to
`GRADIENT_VALUES` values of each parameter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from m3.bench.options import step_options
from m3.bench.published import published_batches, published_loss
from m3.bench.shapes import SHAPES
from m3.bench.timing import Timing, alternate, matmul_peak, peak_device_memory, peak_memory
from m3.data.collate import Collator
from m3.evaluation.cost.latency import device_name
from m3.inference.loading import DTYPES
from m3.model.cost import CostModel, head_dim
from m3.model.packing_check import choose_packed_attention

PUBLISHED = "published"
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative difference from the published gradients; rounding is 1e-6 and 1e-2."""
GRADIENT_VALUES = 2**24
"""Evenly spaced values compared per parameter; two gradients of 7 billion would not fit a GPU."""


@dataclass(frozen=True)
class StepSetting:
    """Model, data and device of a measurement; `rounds`: questions per picture, 0 for all."""

    shape: str
    model_path: str | None
    scales: tuple[int, ...]
    image_count: int
    rounds: int
    pack_lengths: tuple[int, ...]
    tower_state: str
    thread_count: int
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def ways(self) -> list[str]:
        """The published loop, then ours at each length of rows."""
        return [PUBLISHED, *map(str, self.pack_lengths)]


def main(argv: list[str]) -> int:
    """Print seconds, memory and ratios, at last the smallest ratio; 1 when gradients differ."""
    arguments = step_options().parse_args(argv)
    shape = SHAPES[arguments.shape]
    scales = _parse_numbers(arguments.matryoshka_vis_token_scale or shape.scales)
    lengths = _parse_numbers(arguments.pack_lengths or shape.pack_lengths)
    tower_states = tuple(arguments.towers.split(",")) if arguments.towers else shape.towers
    image_count = arguments.images or shape.image_count
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    peak_flops = matmul_peak(device, dtype)
    device_text = f"{arguments.threads} threads" if device.type == "cpu" else device_name(device)
    print(f"{arguments.shape}: {arguments.model or shape.title}")
    print(
        f"{image_count} pictures, scales {list(scales)}, {device_text}, {arguments.repetitions} "
        "repetitions"
    )
    second = "CPU second" if device.type == "cpu" else "second"
    print(f"{arguments.dtype} product: {peak_flops / 1e9:.1f} GFLOP per {second}")
    print(TABLE_HEADER)
    results: list[StepResult] = []
    for tower_state in tower_states:
        setting = StepSetting(
            arguments.shape,
            arguments.model,
            scales,
            image_count,
            arguments.rounds,
            lengths,
            tower_state,
            arguments.threads,
            arguments.device,
            arguments.dtype,
        )
        results += measure_ways(setting, arguments.repetitions, peak_flops)
    print(f"worst: {min(result.speed for result in results):.2f}x")
    return 0 if max(result.error for result in results) <= TOLERANCE[arguments.dtype] else 1


def _parse_numbers(number_list: str) -> tuple[int, ...]:
    return tuple(int(number) for number in number_list.split(","))


TABLE_HEADER = (
    f"{'tower':9}{'rows of':>10}{'rows':>6}{'fill':>7}{'wall s':>9}{'+-':>7}{'CPU s':>9}"
    f"{'tokens/s':>10}{'speed':>8}{'peak MiB':>10}{'memory':>8}{'use':>7}{'gradient':>10}"
)


@dataclass(frozen=True)
class StepResult:
    """Speed of a packed step relative to the published loop, and the gradients' difference."""

    speed: float
    error: float


def measure_ways(setting: StepSetting, repetitions: int, peak_flops: float) -> list[StepResult]:
    """Run all ways in turn and print a line for each."""
    bench = StepBench(setting)
    published_gradient = bench.gradient(PUBLISHED)
    errors = {
        way: relative_difference(bench.gradient(way), published_gradient) for way in setting.ways
    }
    steps = [lambda way=way: bench.step(way) for way in setting.ways]
    timings = dict(
        zip(setting.ways, alternate(steps, repetitions, device=bench.device), strict=True)
    )
    peak_memory_bytes = {way: bench.memory(way) for way in setting.ways}
    results = []
    for way in setting.ways:
        timing, usage = timings[way], bench.flops(way) / bench.seconds(timings[way]) / peak_flops
        speed = bench.seconds(timings[PUBLISHED]) / bench.seconds(timing)
        print(
            _table_line(
                setting.tower_state,
                way,
                bench,
                timing,
                speed,
                peak_memory_bytes[way],
                peak_memory_bytes[PUBLISHED],
                usage,
                errors[way],
            )
        )
        if way != PUBLISHED:
            results.append(StepResult(speed, errors[way]))
    return results


def _table_line(
    tower_state: str,
    way: str,
    bench: "StepBench",
    timing: Timing,
    speed: float,
    memory: int,
    published_memory: int,
    usage: float,
    error: float,
) -> str:
    row_count, positions = bench.rows(way)
    rate = bench.tokens / bench.seconds(timing)
    return (
        f"{tower_state:9}{way:>10}{row_count:>6}{bench.tokens / positions:7.2f}"
        f"{timing.median:9.2f}{timing.spread:7.2f}{timing.cpu_median:9.2f}{rate:10.0f}{speed:7.2f}x"
        f"{memory / 2**20:10.0f}{memory / published_memory:7.2f}x{usage:7.0%}{error:10.1e}"
    )


class StepBench:
    """A model, and prepared batches for each way of a step."""

    def __init__(self, setting: StepSetting) -> None:
        torch.set_num_threads(setting.thread_count)
        self.setting, shape = setting, SHAPES[setting.shape]
        self.device, dtype = torch.device(setting.device), DTYPES[setting.dtype]
        with self.device, default_dtype(dtype):
            self.model, processor = shape.load_model(setting.model_path, setting.scales)
        # transformers' `to` has no types
        cast(nn.Module, self.model).to(self.device, dtype).train()
        self.model.model.vision_tower.requires_grad_(setting.tower_state == "trained")
        self.model.model.freeze_unread()
        self.decoder = self.model.model.language_model
        self.native = self.decoder.config._attn_implementation
        attention_choice = choose_packed_attention(
            self.model.config.text_config, dtype == torch.bfloat16
        )
        self.packed = attention_choice.implementation or self.native
        samples = shape.make_samples(processor, setting.image_count, setting.rounds)
        self.loop = [
            self._move(batch) for batch in published_batches(samples, processor, setting.scales)
        ]
        self.batches = {
            str(length): self._move(
                Collator(processor, scales=setting.scales, pack_length=length)(samples)
            )
            for length in setting.pack_lengths
        }
        self.tower_passes = 3 if setting.tower_state == "trained" else 1
        self.tokens = int(sum(batch["attention_mask"].sum() for batch in self.loop))

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in batch.items()}

    def seconds(self, timing: Timing) -> float:
        """CPU seconds on a CPU (other work disturbs them less), wall seconds on an accelerator."""
        return timing.cpu_median if self.device.type == "cpu" else timing.median

    def memory(self, way: str) -> int:
        """Peak bytes of a step above rest, gradients included."""
        if self.device.type == "cpu":
            return peak_memory(run_once, self.setting, way)
        self.model.zero_grad()
        return peak_device_memory(lambda: self.step(way), self.device)

    def loss(self, way: str) -> Tensor:
        """Loss of a way with the attention implementation that training would use."""
        self.decoder.set_attn_implementation(self.native if way == PUBLISHED else self.packed)
        return (
            published_loss(self.model, self.loop)
            if way == PUBLISHED
            else self.model(**self.batches[way]).loss
        )

    def step(self, way: str) -> None:
        """Clear the gradients, then run forward and backward."""
        self.model.zero_grad()
        self.loss(way).backward()

    def gradient(self, way: str) -> Tensor:
        """Concatenated gradients of all parameters after one step."""
        self.step(way)
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        return torch.cat([values[:: 1 + values.numel() // GRADIENT_VALUES] for values in gradients])

    def rows(self, way: str) -> tuple[int, int]:
        """Number of rows in the decoder's batches, and of positions in them."""
        batches = self.loop if way == PUBLISHED else [self.batches[way]]
        batch_ids = [batch["input_ids"] for batch in batches]
        return sum(len(rows) for rows in batch_ids), sum(rows.numel() for rows in batch_ids)

    def flops(self, way: str) -> float:
        """Operations of the step: real tokens, causal attention, three passes if trained."""
        cost_model, config = CostModel(self.model), self.model.config
        attention_width = (
            cost_model.decoder_layers
            * config.text_config.num_attention_heads
            * head_dim(config.text_config)
        )
        batches = self.loop if way == PUBLISHED else [self.batches[way]]
        lengths = torch.cat([_lengths(batch) for batch in batches]).double()
        weight_flops = 2 * lengths * cost_model.decoder.active(cost_model.top_k)
        decoder_flops = float((weight_flops + 2 * lengths.square() * attention_width).sum())
        target_count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        head_positions = (
            sum(batch["input_ids"].numel() for batch in batches)
            if way == PUBLISHED
            else target_count
        )
        tile_count = sum(len(batch["pixel_values"]) for batch in batches)
        tower_flops = tile_count * (
            self.tower_passes * cost_model.vision_flops() + 3 * cost_model.connector_flops()
        )
        return 3 * (decoder_flops + 2.0 * head_positions * cost_model.head) + tower_flops


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default floating-point type inside the block."""
    previous_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous_dtype)


def _lengths(batch: dict[str, Tensor]) -> Tensor:
    """Lengths of the sequences of a batch, packed or padded."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(1)
    return batch["sequence_lengths"][batch["sequence_lengths"] > 0]


def relative_difference(actual: Tensor, reference: Tensor) -> float:
    """Norm of the difference of two vectors, divided by the norm of the second."""
    return float((actual - reference).float().norm() / reference.float().norm())


def run_once(mark_start: Callable[[], None], setting: StepSetting, way: str) -> None:
    """Run one step in a fresh process, after `mark_start` has recorded the memory at rest."""
    bench = StepBench(setting)
    mark_start()
    bench.step(way)
