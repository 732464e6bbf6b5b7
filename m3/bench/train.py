"""`m3 bench train`: a training step over all scales on samples of mixed length, in every way it can
be run.

    published   one padded batch, tower pass and decoder pass per scale (m3/bench/published.py)
    padded      the tower once; every sequence in a padded row of its own
    packed      the tower once; sequences share rows
    low         the tower once; packed rows one at a time (m3/training/row_by_row.py)
    largest     the largest scale alone, packed: what memory is compared with

Tokens are those that are no padding, the same number in all ways but `largest`; speeds are of CPU
seconds. The published loop runs with the attention that transformers chooses, the others with that
which `m3 train` would choose.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m3.bench.published import published_batches, published_loss
from m3.bench.shapes import suite_samples
from m3.bench.timing import alternate, peak_memory
from m3.data.collate import Collator
from m3.data.sample import Sample
from m3.model import M3ForConditionalGeneration
from m3.model.packing_check import choose_packed_attention
from m3.training.build import load_checkpoint
from m3.training.row_by_row import row_by_row, split_rows

WAYS = ("published", "padded", "packed", "low")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    model: str
    scales: tuple[int, ...]
    images: int
    pack_length: int
    threads: int


def main(argv: list[str]) -> int:
    """Prints times, tokens a second, peak memory and ratios; 1 when the gradients differ."""
    parser = argparse.ArgumentParser(
        prog="m3 bench train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument(
        "--matryoshka_vis_token_scale", default="1,4,9,36,144", help="scales of the step"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=24,
        help="pictures; every third with all its questions, the rest one",
    )
    parser.add_argument("--pack-length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    scales = tuple(int(scale) for scale in arguments.matryoshka_vis_token_scale.split(","))
    setting = Setting(
        arguments.model, scales, arguments.images, arguments.pack_length, arguments.threads
    )
    model, step_calls, tokens = prepare(setting)
    way_gradients = [gradient(model, step_calls[way]) for way in WAYS]
    gradient_errors = {
        way: float((way_gradient - way_gradients[0]).norm() / way_gradients[0].norm())
        for way, way_gradient in zip(WAYS, way_gradients, strict=True)
    }
    del way_gradients
    timings = alternate(
        [lambda step=step_calls[way]: run(model, step) for way in WAYS], arguments.repetitions
    )
    memory = {way: peak_memory(run_once, setting, way) for way in (*WAYS, "largest")}
    print(
        f"{setting.images} pictures, scales {list(scales)}, {tokens} tokens, "
        f"{arguments.repetitions} repetitions"
    )
    print(
        f"{'':12}{'wall s':>9}{'+-':>7}{'CPU s':>9}{'tokens/s':>10}{'speed':>8}{'peak MiB':>10}{'/largest':>10}{'gradient':>10}"
    )
    for way, timing in zip(WAYS, timings, strict=True):
        cpu, share = timing.cpu_median, memory[way] / memory["largest"]
        print(
            f"{way:12}{timing.median:9.3f}{timing.spread:7.3f}{cpu:9.3f}{tokens / cpu:10.0f}{timings[0].cpu_median / cpu:7.2f}x"
            f"{memory[way] / 2**20:10.0f}{share:9.2f}x{gradient_errors[way]:10.1e}"
        )
    print(f"{'largest':12}{'':43}{memory['largest'] / 2**20:10.0f}{1:9.2f}x")
    return 0 if max(gradient_errors.values()) <= 1e-5 else 1


def prepare(
    setting: Setting,
) -> tuple[M3ForConditionalGeneration, dict[str, Callable[[], None]], int]:
    """The model; for each way the function that goes forward and backward over batches made
    beforehand; the tokens.
    """
    torch.set_num_threads(setting.threads)
    model, processor = load_checkpoint(setting.model, setting.scales)
    model.train()
    samples = mixed_samples(setting.images)
    padded = Collator(processor, scales=setting.scales)(samples)
    packed = Collator(processor, scales=setting.scales, pack_length=setting.pack_length)(samples)
    largest_batch = Collator(
        processor, scales=(max(setting.scales),), pack_length=setting.pack_length
    )(samples)
    loop = published_batches(samples, processor, setting.scales)
    tokens = int(padded["attention_mask"].sum())
    # row after row of the padded batch: measuring must not raise the peak of what is measured
    with torch.no_grad():
        load = None if not model.model.routers else load_of(model, padded)
    decoder = model.model.language_model
    native = decoder.config._attn_implementation
    own_attention = choose_packed_attention(model.config.text_config).implementation or native

    def published() -> None:
        decoder.set_attn_implementation(native)
        published_loss(model, loop).backward()
        decoder.set_attn_implementation(own_attention)

    decoder.set_attn_implementation(own_attention)
    step_calls: dict[str, Callable[[], None]] = {
        "published": published,
        "padded": lambda: model(**padded).loss.backward(),
        "packed": lambda: model(**packed).loss.backward(),
        "low": lambda: low(model, packed, tokens, load),
        "largest": lambda: model(**largest_batch).loss.backward(),
    }
    return model, step_calls, tokens


def low(
    model: M3ForConditionalGeneration, batch: dict[str, Tensor], tokens: int, load: Tensor | None
) -> None:
    """Row by row, with the load of the whole batch as the load of the step, which is what the
    other ways balance.
    """
    weights = batch["loss_weights"][:, 1:][batch["labels"][:, 1:] != -100].sum()
    loss_options: dict[str, Tensor] = {"num_items_in_batch": weights}
    if load is not None:
        loss_options |= {"router_load": load, "router_tokens": torch.tensor(float(tokens))}

    def read(row: dict[str, Tensor]) -> Tensor:
        loss = model(**row, **loss_options).loss
        loss.backward()
        return loss.detach()

    row_by_row(model, batch, read)


def load_of(model: M3ForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """`[layers, experts]`, over all rows.

    A run takes it from the step before, and pays nothing for it.
    """
    load_parts: list[Tensor] = []
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    for batch_row in split_rows(model, batch, features):
        load_parts.append(model(**batch_row).expert_load * batch_row["input_ids"].numel())
    total_load = torch.stack(load_parts).sum(0)
    return total_load / total_load.sum(-1, keepdim=True)


def mixed_samples(images: int) -> list[Sample]:
    """Pictures of the embedded suite; every third with all its questions, the others with one."""
    long, short = suite_samples(images, 0), suite_samples(images, 1)
    return [long[n] if n % 3 == 0 else short[n] for n in range(images)]


def gradient(model: M3ForConditionalGeneration, step: Callable[[], None]) -> Tensor:
    """Gradients of all parameters in a row, after one step."""
    run(model, step)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(model: M3ForConditionalGeneration, step: Callable[[], None]) -> None:
    """Forward and backward."""
    model.zero_grad()
    step()


def run_once(mark: Callable[[], None], setting: Setting, way: str) -> None:
    """One step in a fresh process, after `mark` has noted the memory at rest."""
    model, step_calls, _ = prepare(setting)
    mark()
    run(model, step_calls[way])
