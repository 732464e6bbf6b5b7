"""Models for measuring a training step: the shipped tiny one, or random ones of realistic shape.

`real` is drawn in a second: the tower of LLaVA-1.5 (CLIP, 336 pixels, patches of 14: 24 x 24 = 576
tokens) and a Llama decoder, narrow and shallow enough for a CPU, with tower, decoder, attention and
head in realistic proportion. `llava_7b` has LLaVA-1.5-7B's own sizes, 7 billion weights, and texts
of mixed length; it needs a GPU.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from m3.data.formats.parsers.conversation import parse_conversation
from m3.data.formats.record import Record
from m3.data.formats.settings import SourceSettings
from m3.data.sample import IMAGE_MARK, Sample, Turn
from m3.data.synthetic.suite import FAMILIES, train_row
from m3.data.synthetic.tokenizer import build_tokenizer
from m3.data.tokenized import tokenize_sample
from m3.model import M3Config, M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.processing.chat_template import IMAGE_TOKEN
from m3.training.setup.build import load_checkpoint

ModelAndProcessor = tuple[M3ForConditionalGeneration, M3Processor]
REAL_TEXT_TOKENS = 60
REAL_SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
    },
    "vision_config": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    },
}
LLAVA_7B_SIZES: dict[str, dict[str, Any]] = {  # config.json of llava-hf/llava-1.5-7b-hf
    "text_config": {
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}


@dataclass(frozen=True)
class Shape:
    """A row of `SHAPES`: model, samples, and defaults of the measurement.

    load_model: (checkpoint or None, scales) -> model and processor, drawn on the default device in
        the default type.
    make_samples: (processor, image count, rounds) -> samples.
    towers: states of the vision tower to measure, frozen or trained.
    """

    title: str
    load_model: Callable[[str | None, Sequence[int]], ModelAndProcessor]
    make_samples: Callable[[M3Processor, int, int], list[Sample]]
    scales: str
    image_count: int
    pack_lengths: str
    towers: tuple[str, ...]


def load_tiny(checkpoint_path: str | None, scales: Sequence[int]) -> ModelAndProcessor:
    """Load a checkpoint folder, by default the shipped one."""
    return load_checkpoint(checkpoint_path or "playground/m3-tiny-base", scales)


def suite_samples(image_count: int, rounds: int) -> list[Sample]:
    """Samples of the embedded suite, its families in turn, `rounds` questions each (0: all)."""
    families = list(FAMILIES)
    rows = [
        train_row(families[n % len(families)], n // len(families), seed=0)
        for n in range(image_count)
    ]
    for row in rows:
        row["conversations"] = (
            row["conversations"][: 2 * rounds] if rounds else row["conversations"]
        )
    settings = SourceSettings(path="m3_tiny")
    return [
        parse_conversation(Record(row, f"picture {n}", str(n)), settings)
        for n, row in enumerate(rows)
    ]


def draw_real(checkpoint_path: str | None, scales: Sequence[int]) -> ModelAndProcessor:
    """28.6 million random weights, always the same."""
    return _draw_model("real", checkpoint_path, scales, REAL_SIZES)


def draw_llava_7b(checkpoint_path: str | None, scales: Sequence[int]) -> ModelAndProcessor:
    """7.1 billion random weights, always the same."""
    return _draw_model("llava_7b", checkpoint_path, scales, LLAVA_7B_SIZES)


def _draw_model(
    shape_name: str,
    checkpoint_path: str | None,
    scales: Sequence[int],
    sizes: Mapping[str, Mapping[str, Any]],
) -> ModelAndProcessor:
    if checkpoint_path is not None:
        raise ValueError(
            f"--shape {shape_name} draws its own model; leave --model out, or take --shape tiny"
        )
    tokenizer: PreTrainedTokenizerBase = build_tokenizer()
    text = {
        "model_type": "llama",
        "max_position_embeddings": 16384,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **sizes["text_config"],
    }
    vision = {
        "model_type": "clip_vision_model",
        "image_size": 336,
        "patch_size": 14,
        **sizes["vision_config"],
    }
    nesting = {"kind": "grid_pool", "trained_scales": sorted(scales)}
    # for one token it returns an integer, for several a list
    image_token_id = cast(int, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = M3Config(
            vision_config=vision,
            text_config=text,
            image_token_id=image_token_id,
            drop_class_token=True,
            vision_feature_layer=-2,
            nesting=nesting,
        )
        model = M3ForConditionalGeneration(config)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    return model, M3Processor(image_processor, tokenizer, grid=(24, 24), nesting=nesting)


def equal_samples(processor: M3Processor, image_count: int, rounds: int) -> list[Sample]:
    """Pictures of noise with one question and answer each, `REAL_TEXT_TOKENS` of text."""
    return _noise_samples(processor, [REAL_TEXT_TOKENS] * image_count)


def mixed_samples(processor: M3Processor, image_count: int, rounds: int) -> list[Sample]:
    """Pictures of noise with lognormal text lengths (mean 150), as in LLaVA's instruction data."""
    lengths = np.random.default_rng(0).lognormal(np.log(150) - 0.32, 0.8, image_count)
    return _noise_samples(
        processor, [max(REAL_TEXT_TOKENS, min(int(length), 2000)) for length in lengths]
    )


def _noise_samples(processor: M3Processor, text_tokens: Sequence[int]) -> list[Sample]:
    random_source = np.random.default_rng(0)
    samples = []
    for sample_number, token_count in enumerate(text_tokens):
        buffer = io.BytesIO()
        Image.fromarray(random_source.integers(0, 255, (336, 336, 3), dtype=np.uint8)).save(
            buffer, "PNG"
        )
        question = Turn("user", f"{IMAGE_MARK}\n" + " ".join(["red"] * 20))
        sample = Sample(
            f"noise {sample_number}", (buffer.getvalue(),), (question, Turn("assistant", "blue"))
        )
        # one of these ids is the image token
        missing_tokens = token_count + 1 - len(tokenize_sample(sample, processor).input_ids)
        answer = Turn("assistant", " ".join(["blue"] * (1 + missing_tokens)))
        samples.append(Sample(sample.id, sample.images, (question, answer)))
    return samples


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(
        title="a checkpoint folder (by default the tiny base: 12 x 12 grid, mixture of experts) on "
        "the embedded suite",
        load_model=load_tiny,
        make_samples=lambda processor, image_count, rounds: suite_samples(image_count, rounds),
        scales="1,4,9,36,144",
        image_count=24,
        pack_lengths="512,4096",
        towers=("trained",),
    ),
    "real": Shape(
        title="24 x 24 grid: CLIP tower 336/14 (width 256, 6 layers), Llama decoder (width 512, 6 "
        "layers, 4096 words)",
        load_model=draw_real,
        make_samples=equal_samples,
        scales="1,9,36,144,576",
        image_count=4,
        pack_lengths="640,2048,4096,8192",
        towers=("frozen", "trained"),
    ),
    "llava_7b": Shape(
        title="24 x 24 grid: CLIP tower ViT-L 336/14, Llama decoder of 6.7 billion weights, texts "
        "of mixed length",
        load_model=draw_llava_7b,
        make_samples=mixed_samples,
        scales="1,9,36,144,576",
        image_count=4,
        pack_lengths="2048,4096,8192",
        towers=("frozen", "trained"),
    ),
}
