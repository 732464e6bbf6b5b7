"""The format of transformers' `LlavaNextForConditionalGeneration` (`llava-hf/llava-v1.6-*`), with any decoder it can hold.

As m3/checkpoints/llava_hf.py, with images of any resolution: the newline vector, the pinpoints, and an image processor that
cuts, in place of the one for a single tile that ours has. transformers reads such a checkpoint at the largest scale alone.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BaseImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from m3.checkpoints.anyres import problems
from m3.checkpoints.base import Foreign, Format, Native, Options, Part, generation_config, read_json, refuse
from m3.checkpoints.clip import clip_preprocessing
from m3.checkpoints.keymap import Keymap, Row
from m3.checkpoints.layout import HubLayout
from m3.checkpoints.llava_hf import KEYMAP as LLAVA
from m3.checkpoints.llava_hf import SCALES
from m3.checkpoints.processors import (
    choose_template,
    clip_image_processor,
    load_image_processor,
    load_tokenizer,
    make_processor,
    token_of,
)
from m3.checkpoints.rows import room_for_placeholder
from m3.model import M3Config
from m3.nesting import TilingConfig

KEYMAP = Keymap((*LLAVA.rows, Row("model.image_newline", "model.image_newline")), LLAVA.dropped)
ROUNDING = "seven_digits"
BICUBIC = 3
_IMAGE_SETTINGS = tuple(key for key in clip_preprocessing(336) if key != "image_processor_type")


class LlavaNextHf(Format):
    """The row of the table."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "llava_next" and "text_config" in config

    def read(self, folder: Path, options: Options) -> Native:
        if options.vision_tower is not None:
            raise ValueError(f"{folder} has its vision tower inside; leave --vision-tower out")
        config = LlavaNextConfig.from_pretrained(folder)
        layer, activation = config.vision_feature_layer, config.projector_hidden_act
        tower: Any = config.vision_config  # a configuration once read
        refuse(
            f"{folder}: this format is read without",
            {
                f"projector_hidden_act {activation!r} (gelu is)": activation != "gelu",
                "multimodal_projector_bias false": not config.multimodal_projector_bias,
                f"several vision_feature_layer {layer}": not isinstance(layer, int),
            },
        )
        assert isinstance(layer, int)  # as checked
        native = M3Config(
            vision_config=tower,
            text_config=config.text_config,
            nesting={"kind": "grid_pool", "trained_scales": read_json(folder / "config.json").get(SCALES, [])},
            tiling=TilingConfig(
                kind="anyres",
                tile_size=tower.image_size,
                grid_pinpoints=config.image_grid_pinpoints or [],
                unpad_rounding=ROUNDING,
            ),
            image_token_id=config.image_token_index,
            vision_feature_layer=layer,
            drop_class_token=config.vision_feature_select_strategy == "default",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
        )
        tokenizer = load_tokenizer(folder, options.tokenizer, native.text_config.vocab_size)
        processor = make_processor(
            native,
            tile_image_processor(load_image_processor(folder), native.tiling),
            tokenizer,
            choose_template(tokenizer, folder, native, options.chat_template),
            token_of(tokenizer, native.image_token_id),
        )
        part = Part(folder, HubLayout(empty_llava_next(config)), KEYMAP)
        return Native(native, processor, (part,), generation_config(native.text_config, folder))

    def write(self, native: Native) -> Foreign:
        config = native.config
        connector, nesting, tiling = config.connector.kind, config.nesting.kind, config.tiling.kind
        refuse(
            "the format llava-next-hf cannot hold",
            {
                f"the connector {connector} (mlp2x_gelu is all it has)": connector != "mlp2x_gelu",
                f"the nesting {nesting} (grid_pool is)": nesting != "grid_pool",
                f"the tiling {tiling} (anyres is)": tiling != "anyres",
                "an encoder's last, normalised output (it reads hidden states)": config.vision_feature_layer is None,
                **problems(config.tiling, ROUNDING),
            },
        )
        vocabulary, edit = room_for_placeholder(config)
        assert config.vision_feature_layer is not None  # as checked
        foreign = LlavaNextConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict() | {"vocab_size": vocabulary},
            image_token_index=config.image_token_id,
            image_grid_pinpoints=[list(pinpoint) for pinpoint in config.tiling.grid_pinpoints],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy="default" if config.drop_class_token else "full",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
            architectures=["LlavaNextForConditionalGeneration"],
        )
        foreign.update({SCALES: list(config.nesting.trained_scales)})
        return Foreign(HubLayout(empty_llava_next(foreign)), KEYMAP, partial(_save, native, foreign), edit)


def empty_llava_next(config: LlavaNextConfig) -> LlavaNextForConditionalGeneration:
    """transformers' model without weights, on the meta device."""
    with torch.device("meta"):
        return LlavaNextForConditionalGeneration(config)


def tile_image_processor(image_processor: BaseImageProcessor, tiling: TilingConfig) -> BaseImageProcessor:
    """The image processor of one tile; cutting is ours (m3/processing/tiles.py)."""
    settings = image_processor.to_dict()
    pinpoints = [list(pinpoint) for pinpoint in settings["image_grid_pinpoints"]]
    refuse(
        "the image processor of this format is read without",
        {
            f"resample {settings['resample']} (3, bicubic, is)": settings["resample"] != BICUBIC,
            f"image_grid_pinpoints {pinpoints}, which are not those of the model": (
                pinpoints != [list(pinpoint) for pinpoint in tiling.grid_pinpoints]
            ),
        },
    )
    return clip_image_processor({key: settings[key] for key in _IMAGE_SETTINGS})


def cutting_image_processor(image_processor: BaseImageProcessor, tiling: TilingConfig) -> LlavaNextImageProcessorPil:
    """transformers' own image processor that cuts as ours does, with the same settings otherwise."""
    given = image_processor.to_dict()
    settings: dict[str, Any] = {
        "do_center_crop": False,
        "crop_size": {"height": tiling.tile_size, "width": tiling.tile_size},
    }
    settings |= {key: given[key] for key in _IMAGE_SETTINGS if key in given} | {"resample": BICUBIC}
    settings |= {"image_grid_pinpoints": [list(pinpoint) for pinpoint in tiling.grid_pinpoints]}
    return LlavaNextImageProcessorPil(**settings)


def _save(native: Native, config: LlavaNextConfig, folder: Path) -> None:
    config.save_pretrained(folder)
    native.generation.save_pretrained(folder)
    processor = LlavaNextProcessor(
        image_processor=cutting_image_processor(native.processor.image_processor, native.config.tiling),
        tokenizer=native.processor.tokenizer,
        patch_size=native.config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=native.processor.chat_template,
        image_token=native.processor.image_token,
        num_additional_image_tokens=int(native.config.drop_class_token),
    )
    processor.save_pretrained(folder)
