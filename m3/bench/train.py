"""`m3 bench train`: an all-scales training step on samples of mixed length, in five ways.

    published   one padded batch, tower pass and decoder pass per scale (m3/bench/published.py)
    padded      the tower once; every sequence in a padded row of its own
    packed      the tower once; sequences share rows
    low         the tower once; packed rows one at a time (m3/training/loop/row_by_row.py)
    largest     the largest scale alone, packed: the reference for memory

Tokens exclude padding; all ways but `largest` have the same number. Speeds are of CPU seconds. The
published loop runs with transformers' choice of attention, the others with that of `m3 train`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m3.bench.options import train_options
from m3.bench.published import published_batches, published_loss
from m3.bench.shapes import suite_samples
from m3.bench.timing import alternate, peak_memory
from m3.data.collate import Collator
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.packing_check import choose_packed_attention
from m3.training.loop.row_by_row import row_by_row, split_rows
from m3.training.setup.build import load_checkpoint

WAYS = ("published", "padded", "packed", "low")


@dataclass(frozen=True)
class TrainSetting:
    """Model, scales and sizes of the measured step."""

    model_path: str
    scales: tuple[int, ...]
    image_count: int
    pack_length: int
    thread_count: int


def main(argv: list[str]) -> int:
    """Print times, tokens per second, peak memory and ratios; 1 when the gradients differ."""
    arguments = train_options().parse_args(argv)
    scales = tuple(int(scale) for scale in arguments.matryoshka_vis_token_scale.split(","))
    setting = TrainSetting(
        arguments.model,
        scales,
        arguments.images,
        arguments.pack_length,
        arguments.threads or torch.get_num_threads(),
    )
    model, steps, tokens = prepare_steps(setting)
    gradients = [gradient(model, steps[way]) for way in WAYS]
    errors = {
        way: float((vector - gradients[0]).norm() / gradients[0].norm())
        for way, vector in zip(WAYS, gradients, strict=True)
    }
    del gradients
    timings = alternate(
        [lambda step=steps[way]: run_step(model, step) for way in WAYS], arguments.repetitions
    )
    memory = {way: peak_memory(run_once, setting, way) for way in (*WAYS, "largest")}
    print(
        f"{setting.image_count} pictures, scales {list(scales)}, {tokens} tokens, "
        f"{arguments.repetitions} repetitions"
    )
    print(
        f"{'':12}{'wall s':>9}{'+-':>7}{'CPU s':>9}{'tokens/s':>10}{'speed':>8}{'peak MiB':>10}"
        f"{'/largest':>10}{'gradient':>10}"
    )
    for way, timing in zip(WAYS, timings, strict=True):
        cpu_seconds, share = timing.cpu_median, memory[way] / memory["largest"]
        print(
            f"{way:12}{timing.median:9.3f}{timing.spread:7.3f}{cpu_seconds:9.3f}"
            f"{tokens / cpu_seconds:10.0f}{timings[0].cpu_median / cpu_seconds:7.2f}x"
            f"{memory[way] / 2**20:10.0f}{share:9.2f}x{errors[way]:10.1e}"
        )
    print(f"{'largest':12}{'':43}{memory['largest'] / 2**20:10.0f}{1:9.2f}x")
    return 0 if max(errors.values()) <= 1e-5 else 1


def prepare_steps(
    setting: TrainSetting,
) -> tuple[M3ForConditionalGeneration, dict[str, Callable[[], None]], int]:
    """Model, forward and backward function of each way over prepared batches, token count."""
    torch.set_num_threads(setting.thread_count)
    model, processor = load_checkpoint(setting.model_path, setting.scales)
    model.train()
    samples = mixed_samples(setting.image_count)
    padded_batch = Collator(processor, scales=setting.scales)(samples)
    packed_batch = Collator(processor, scales=setting.scales, pack_length=setting.pack_length)(
        samples
    )
    largest_batch = Collator(
        processor, scales=(max(setting.scales),), pack_length=setting.pack_length
    )(samples)
    loop = published_batches(samples, processor, setting.scales)
    tokens = int(padded_batch["attention_mask"].sum())
    # row by row, so that this does not raise the peak of memory that is measured
    with torch.no_grad():
        step_load = None if not model.model.routers else expert_load(model, padded_batch)
    decoder = model.model.language_model
    native_attention = decoder.config._attn_implementation
    packed_attention = (
        choose_packed_attention(model.config.text_config).implementation or native_attention
    )

    def published() -> None:
        decoder.set_attn_implementation(native_attention)
        published_loss(model, loop).backward()
        decoder.set_attn_implementation(packed_attention)

    decoder.set_attn_implementation(packed_attention)
    steps: dict[str, Callable[[], None]] = {
        "published": published,
        "padded": lambda: model(**padded_batch).loss.backward(),
        "packed": lambda: model(**packed_batch).loss.backward(),
        "low": lambda: run_low_memory(model, packed_batch, tokens, step_load),
        "largest": lambda: model(**largest_batch).loss.backward(),
    }
    return model, steps, tokens


def run_low_memory(
    model: M3ForConditionalGeneration,
    batch: dict[str, Tensor],
    tokens: int,
    step_load: Tensor | None,
) -> None:
    """Run the step row by row, with the whole batch's router load as in the other ways."""
    weight_sum = batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum()
    step_options: dict[str, Tensor] = {"num_items_in_batch": weight_sum}
    if step_load is not None:
        step_options |= {"router_load": step_load, "router_tokens": torch.tensor(float(tokens))}

    def read(row: dict[str, Tensor]) -> Tensor:
        row_loss = model(**row, **step_options).loss
        row_loss.backward()
        return row_loss.detach()

    row_by_row(model, batch, read)


def expert_load(model: M3ForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Router load `[layers, experts]` over all rows; in training it comes from the last step."""
    row_loads: list[Tensor] = []
    image_features = model.get_image_features(batch["pixel_values"]).pooler_output
    for row in split_rows(model, batch, image_features):
        row_loads.append(model(**row).expert_load * row["input_ids"].numel())
    total = torch.stack(row_loads).sum(0)
    return total / total.sum(-1, keepdim=True)


def mixed_samples(image_count: int) -> list[Sample]:
    """Samples of the embedded suite; every third with all questions, the others with one."""
    long_samples, short_samples = suite_samples(image_count, 0), suite_samples(image_count, 1)
    return [long_samples[n] if n % 3 == 0 else short_samples[n] for n in range(image_count)]


def gradient(model: M3ForConditionalGeneration, step: Callable[[], None]) -> Tensor:
    """Concatenated gradients of all parameters after one step."""
    run_step(model, step)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run_step(model: M3ForConditionalGeneration, step: Callable[[], None]) -> None:
    """Clear the gradients and run one step."""
    model.zero_grad()
    step()


def run_once(mark_start: Callable[[], None], setting: TrainSetting, way: str) -> None:
    """Run one step in a fresh process, after `mark_start` has recorded the memory at rest."""
    model, steps, _ = prepare_steps(setting)
    mark_start()
    run_step(model, steps[way])
