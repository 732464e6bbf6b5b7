"""`m3 bench step`: one all-scales training step, ours (one tower and one packed decoder pass) against the published way."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m3.bench.published import published_batches, published_loss
from m3.bench.timing import Timing, alternate, peak_memory
from m3.data.collate import Collator
from m3.data.formats.record import sample_from_record
from m3.data.sample import Sample
from m3.data.synthetic.suite import FAMILIES, train_row
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.build import load_checkpoint


@dataclass(frozen=True)
class Setting:
    """What is measured. `rounds`: questions kept of each picture; 0 keeps all."""

    model: str
    scales: tuple[int, ...]
    images: int
    rounds: int
    pack_length: int
    threads: int


def main(argv: list[str]) -> int:
    """Prints times, peak memory and their ratios; 1 when the gradients differ."""
    parser = argparse.ArgumentParser(prog="m3 bench step", description=__doc__)
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument("--matryoshka_vis_token_scale", default="1,4,9,36,144", help="scales of the step")
    parser.add_argument("--images", type=int, default=24, help="pictures of the embedded suite in a step")
    parser.add_argument("--rounds", type=int, default=1, help="questions kept of each picture; 0: all of them")
    parser.add_argument("--pack-length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    scales = tuple(int(scale) for scale in arguments.matryoshka_vis_token_scale.split(","))
    setting = Setting(
        arguments.model, scales, arguments.images, arguments.rounds, arguments.pack_length, arguments.threads
    )
    error, (ours, published) = measure_time(setting, arguments.repetitions)
    memory = {name: peak_memory(run_once, setting, name) for name in ("ours", "published")}
    print(
        f"{setting.images} pictures, scales {list(scales)}, {setting.threads} threads, {arguments.repetitions} repetitions"
    )
    print(f"gradients: relative difference {error:.1e}")
    print(f"{'':12}{'s/step':>10}{'+-':>8}{'peak MiB':>11}")
    for name, timing in (("published", published), ("ours", ours)):
        print(f"{name:12}{timing.median:10.3f}{timing.spread:8.3f}{memory[name] / 2**20:11.0f}")
    print(
        f"ours is {published.median / ours.median:.2f}x faster at {memory['ours'] / memory['published']:.2f}x the memory"
    )
    return 0 if error <= 1e-5 else 1


def measure_time(setting: Setting, repetitions: int) -> tuple[float, list[Timing]]:
    """Relative difference of the two ways' gradients, and the times of ours and of the published way."""
    model, ways = prepare(setting)
    gradients = []
    for name in ("ours", "published"):
        step(model, ways[name])
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    tasks = [lambda name=name: step(model, ways[name]) for name in ("ours", "published")]
    return error, alternate(tasks, repetitions)


def prepare(setting: Setting) -> tuple[M3ForConditionalGeneration, dict[str, Callable[[], Tensor]]]:
    """The model, and for each way the function that computes its loss from batches made beforehand."""
    torch.set_num_threads(setting.threads)
    model, processor = load_checkpoint(setting.model, setting.scales)
    samples = suite_samples(setting.images, setting.rounds)
    packed = packed_batch(samples, processor, setting)
    loop = published_batches(samples, processor, setting.scales)
    model.train()
    return model, {"ours": lambda: model(**packed).loss, "published": lambda: published_loss(model, loop)}


def packed_batch(samples: list[Sample], processor: M3Processor, setting: Setting) -> dict[str, Tensor]:
    """All scales of all samples in packed rows."""
    return Collator(processor, scales=setting.scales, pack_length=setting.pack_length)(samples)


def suite_samples(images: int, rounds: int) -> list[Sample]:
    """Training pictures of the embedded suite, its families in turn."""
    families = list(FAMILIES)
    rows = [train_row(families[n % len(families)], n // len(families), seed=0) for n in range(images)]
    for row in rows:
        row["conversations"] = row["conversations"][: 2 * rounds] if rounds else row["conversations"]
    return [sample_from_record(row, f"picture {n}", str(n)) for n, row in enumerate(rows)]


def step(model: M3ForConditionalGeneration, loss: Callable[[], Tensor]) -> None:
    """Forward and backward."""
    model.zero_grad()
    loss().backward()


def run_once(mark: Callable[[], None], setting: Setting, way: str) -> None:
    """One step in a fresh process, after `mark` has noted the memory at rest."""
    model, ways = prepare(setting)
    mark()
    step(model, ways[way])
