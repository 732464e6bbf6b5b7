"""InternVL as transformers saves it (`OpenGVLab/InternVL3-*-hf`): any decoder behind pixel shuffle,
images in the grid of tiles nearest to their shape.

Our names stand beside those of transformers' modules (`InternVLForConditionalGeneration`). The
published models were trained at all tokens of a tile alone, 256 of 448 pixels; the scales of a
model trained further stand in `matryoshka_vis_token_scale` of `config.json`. An image stands
between the tokenizer's `start_image_token` and `end_image_token`, which transformers' processor
writes and here the chat template does.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BaseImageProcessor,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from m3.checkpoints.base import (
    Foreign,
    Format,
    Native,
    Options,
    Part,
    generation_config,
    read_json,
    refuse,
)
from m3.checkpoints.conversion import HubLayout
from m3.checkpoints.keymap import Keymap, Row
from m3.checkpoints.new_embeddings import NEW_TOKENS, room_for_placeholder
from m3.checkpoints.processors import load_image_processor, load_tokenizer, make_processor, token_of
from m3.model import M3Config
from m3.processing.chat_template import marked_image_template

SCALES = "matryoshka_vis_token_scale"
BICUBIC = 3
LAST_OUTPUT = -1
"""In transformers' `vision_feature_layer`: the encoder's last output, and no hidden state."""
MARKS = ("start_image_token", "end_image_token")
IMAGE_SETTINGS = ("size", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize")
KEYMAP = Keymap(
    (
        Row("model.vision_tower.*", "model.vision_tower.*"),
        Row("model.multi_modal_projector.layer_norm.*", "model.connector.norm.*"),
        Row("model.multi_modal_projector.linear_1.*", "model.connector.linear_in.*"),
        Row("model.multi_modal_projector.linear_2.*", "model.connector.linear_out.*"),
        Row("model.language_model.*", "model.language_model.*"),
        Row("lm_head.weight", "lm_head.weight"),
    )
)


class InternVl(Format):
    """The row of the table."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == InternVLConfig.model_type

    def read(self, folder: Path, options: Options) -> Native:
        if options.vision_tower is not None:
            raise ValueError(f"{folder} has its vision tower inside; leave --vision-tower out")
        config = InternVLConfig.from_pretrained(folder)
        vision: Any = config.vision_config  # a configuration once read
        layer, ratio = config.vision_feature_layer, config.downsample_ratio
        theirs = load_image_processor(folder).to_dict()
        side = theirs["size"]["height"]
        refuse(
            f"{folder}: this format is read without",
            {
                f"projector_hidden_act {config.projector_hidden_act!r} (gelu is)": (
                    config.projector_hidden_act != "gelu"
                ),
                f"several vision_feature_layer {layer}": not isinstance(layer, int),
                f"downsample_ratio {ratio}, which is not one by a whole number": (
                    round(1 / ratio) * ratio != 1
                ),
                f"resample {theirs['resample']} (3, bicubic, is)": theirs["resample"] != BICUBIC,
                f"tiles of {theirs['size']} (squares are)": theirs["size"].get("width") != side,
            },
        )
        assert isinstance(layer, int)  # as checked
        settings = read_json(folder / "config.json")
        native = M3Config(
            vision_config=vision,
            text_config=config.text_config,
            connector={"kind": "pixel_shuffle", "downsample": round(1 / ratio)},
            nesting={"kind": "grid_pool", "trained_scales": settings.get(SCALES, [])},
            new_token_ids=settings.get(NEW_TOKENS),
            tiling={
                "kind": "internvl",
                "tile_size": side,
                "min_tiles": theirs["min_patches"],
                "max_tiles": theirs["max_patches"],
            },
            image_token_id=config.image_token_id,
            vision_feature_layer=None if layer == LAST_OUTPUT else layer,
            drop_class_token=config.vision_feature_select_strategy == "default",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
        )
        tokenizer = load_tokenizer(folder, options.tokenizer, native.text_config.vocab_size)
        image_token = token_of(tokenizer, native.image_token_id)
        template = options.chat_template or marked_image_template(
            image_token, *_image_marks(tokenizer)
        )
        image_processor = _tile_processor(theirs, crop_to_patches=False)
        return Native(
            native,
            make_processor(native, image_processor, tokenizer, template, image_token),
            (Part(folder, HubLayout(empty_internvl(config)), KEYMAP),),
            generation_config(native.text_config, folder),
        )

    def write(self, native: Native) -> Foreign:
        config = native.config
        refuse(
            "the format internvl cannot hold",
            {
                f"the {part} {kind} ({only} is all it has)": kind != only
                for part, kind, only in (
                    ("connector", config.connector.kind, "pixel_shuffle"),
                    ("nesting", config.nesting.kind, "grid_pool"),
                    ("tiling", config.tiling.kind, "internvl"),
                )
            }
            | {"several chat templates": not isinstance(native.processor.chat_template, str)},
        )
        assert isinstance(config.grid, tuple)  # of pixel shuffle
        _image_marks(native.processor.tokenizer)  # refuses a tokenizer without them
        vocabulary, edit = room_for_placeholder(config)
        layer = config.vision_feature_layer
        if layer == LAST_OUTPUT:  # the same hidden state, counted from the front
            layer = config.vision_config.num_hidden_layers
        foreign = InternVLConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict() | {"vocab_size": vocabulary},
            image_token_id=config.image_token_id,
            image_seq_length=config.grid[0] * config.grid[1],
            downsample_ratio=1 / config.connector.downsample,
            vision_feature_layer=LAST_OUTPUT if layer is None else layer,
            vision_feature_select_strategy="default" if config.drop_class_token else "full",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
            architectures=[InternVLForConditionalGeneration.__name__],
        )
        foreign.update({SCALES: list(config.nesting.trained_scales)})
        if config.new_token_ids is not None:
            foreign.update({NEW_TOKENS: config.new_token_ids})
        layout = HubLayout(empty_internvl(foreign))
        return Foreign(layout, KEYMAP, partial(_save, native, foreign), edit)


def empty_internvl(config: InternVLConfig) -> InternVLForConditionalGeneration:
    """transformers' model without weights, for its names."""
    with torch.device("meta"):
        return InternVLForConditionalGeneration(config)


def _image_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The tokens before and behind an image; a `ValueError` when the tokenizer names none."""
    named = tokenizer.special_tokens_map
    missing = [name for name in MARKS if name not in named]
    if missing:
        raise ValueError(
            f"the format internvl needs a tokenizer that names {' and '.join(missing)} among its "
            "extra_special_tokens; give that of an InternVL model with --tokenizer"
        )
    return named[MARKS[0]], named[MARKS[1]]


def _tile_processor(settings: Mapping[str, Any], **tiles: Any) -> GotOcr2ImageProcessorPil:
    """transformers' image processor of these settings; `tiles` says whether and how it cuts."""
    shared = {name: settings[name] for name in IMAGE_SETTINGS if name in settings}
    return GotOcr2ImageProcessorPil(**shared, resample=BICUBIC, **tiles)


def _save(native: Native, config: InternVLConfig, folder: Path) -> None:
    config.save_pretrained(folder)
    native.generation.save_pretrained(folder)
    ours: BaseImageProcessor = native.processor.image_processor
    tiling = native.config.tiling
    image_processor = _tile_processor(
        ours.to_dict(),
        crop_to_patches=True,
        min_patches=tiling.min_tiles,
        max_patches=tiling.max_tiles,
    )
    image_processor.save_pretrained(folder)
    tokenizer = native.processor.tokenizer
    # the processor writes the marks around an image: its template must not
    image_token = native.processor.image_token
    start, end = _image_marks(tokenizer)
    template = native.processor.chat_template
    assert isinstance(template, str)  # `write` refuses several
    template = template.replace(f"{start}{image_token}{end}", image_token)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    # transformers' class cannot be made without torchvision, which its videos need
    processor = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": config.image_seq_length,
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    video = {"video_processor_type": "InternVLVideoProcessor"} | {
        name: value for name, value in image_processor.to_dict().items() if name in IMAGE_SETTINGS
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
