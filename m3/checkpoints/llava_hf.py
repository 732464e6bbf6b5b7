"""The format of transformers' `LlavaForConditionalGeneration` (`llava-hf/*`), with any decoder that it can hold.

Names in the table are those of its modules; how files lead to them, separate experts included, is transformers' own
knowledge (m3/checkpoints/layout.py). transformers reads such a checkpoint at the largest scale alone; the scales that
were trained are kept in its `config.json` as `matryoshka_vis_token_scale`, which it ignores and we read again.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from m3.checkpoints.base import Foreign, Format, Native, Options, Part, generation_config, read_json, refuse
from m3.checkpoints.keymap import Dropped, Keymap, Row
from m3.checkpoints.layout import HubLayout
from m3.checkpoints.processors import choose_template, load_image_processor, load_tokenizer, make_processor, token_of
from m3.checkpoints.rows import room_for_placeholder
from m3.model import M3Config

KEYMAP = Keymap(
    rows=(
        Row("model.vision_tower.*", "model.vision_tower.*"),
        Row("model.multi_modal_projector.linear_1.*", "model.connector.0.*"),
        Row("model.multi_modal_projector.linear_2.*", "model.connector.2.*"),
        Row("model.language_model.*", "model.language_model.*"),
        Row("lm_head.weight", "lm_head.weight"),
    ),
    dropped=(
        Dropped("*.embeddings.position_ids", "a buffer that counts upwards; newer versions make it anew"),
        Dropped("*.rotary_emb.inv_freq", "a buffer computed from the configuration"),
    ),
)
SCALES = "matryoshka_vis_token_scale"
_IMAGE_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "do_convert_rgb"),
)


class LlavaHf(Format):
    """The row of the table."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "llava" and "text_config" in config

    def read(self, folder: Path, options: Options) -> Native:
        if options.vision_tower is not None:
            raise ValueError(f"{folder} has its vision tower inside; leave --vision-tower out")
        config = LlavaConfig.from_pretrained(folder)
        refuse(
            f"{folder}: this format is read without",
            {
                f"projector_hidden_act {config.projector_hidden_act!r} (gelu is)": config.projector_hidden_act
                != "gelu",
                "multimodal_projector_bias false": not config.multimodal_projector_bias,
                f"several vision_feature_layer {config.vision_feature_layer}": (
                    not isinstance(config.vision_feature_layer, int)
                ),
            },
        )
        layer = config.vision_feature_layer
        assert isinstance(layer, int)  # as checked
        native = M3Config(
            vision_config=config.vision_config,
            text_config=config.text_config,
            nesting={"kind": "grid_pool", "trained_scales": read_json(folder / "config.json").get(SCALES, [])},
            image_token_id=config.image_token_index,
            vision_feature_layer=layer,
            drop_class_token=config.vision_feature_select_strategy == "default",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
        )
        tokenizer = load_tokenizer(folder, options.tokenizer, native.text_config.vocab_size)
        processor = make_processor(
            native,
            load_image_processor(folder),
            tokenizer,
            choose_template(tokenizer, folder, native, options.chat_template),
            token_of(tokenizer, native.image_token_id),
        )
        part = Part(folder, HubLayout(empty_llava(config)), KEYMAP)
        return Native(native, processor, (part,), generation_config(native.text_config, folder))

    def write(self, native: Native) -> Foreign:
        config = native.config
        refuse(
            "the format llava-hf cannot hold",
            {
                f"the connector {config.connector.kind} (mlp2x_gelu is all it has)": config.connector.kind
                != "mlp2x_gelu",
                f"the nesting {config.nesting.kind} (grid_pool is)": config.nesting.kind != "grid_pool",
                f"the tiling {config.tiling.kind} (one tile per image is)": config.tiling.kind != "single",
                "an encoder's last, normalised output (it reads hidden states)": config.vision_feature_layer is None,
            },
        )
        vocabulary, edit = room_for_placeholder(config)
        assert isinstance(config.grid, tuple) and config.vision_feature_layer is not None  # as checked
        foreign = LlavaConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict() | {"vocab_size": vocabulary},
            image_token_index=config.image_token_id,
            image_seq_length=config.grid[0] * config.grid[1],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy="default" if config.drop_class_token else "full",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
            architectures=["LlavaForConditionalGeneration"],
        )
        foreign.update({SCALES: list(config.nesting.trained_scales)})
        return Foreign(HubLayout(empty_llava(foreign)), KEYMAP, partial(_save, native, foreign), edit)


def empty_llava(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """transformers' model without weights, on the meta device."""
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


def _save(native: Native, config: LlavaConfig, folder: Path) -> None:
    config.save_pretrained(folder)
    native.generation.save_pretrained(folder)
    processor = LlavaProcessor(
        image_processor=padding_image_processor(native.processor.image_processor),
        tokenizer=native.processor.tokenizer,
        patch_size=native.config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=native.processor.chat_template,
        image_token=native.processor.image_token,
        num_additional_image_tokens=int(native.config.drop_class_token),
    )
    processor.save_pretrained(folder)


def padding_image_processor(image_processor: BaseImageProcessor) -> LlavaImageProcessorPil:
    """transformers' own image processor that pads to a square as ours does, with the same settings otherwise."""
    settings = image_processor.to_dict()
    return LlavaImageProcessorPil(do_pad=True, **{key: settings[key] for key in _IMAGE_SETTINGS if key in settings})
