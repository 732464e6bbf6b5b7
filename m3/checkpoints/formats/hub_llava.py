"""The common part of the formats of transformers' LLaVA models (`llava-hf/*`), with any decoder
that they can hold.

Names in the table are those of transformers' modules; how files lead to them, separate experts
included, is transformers' own knowledge (m3/checkpoints/conversion.py). transformers reads such a
checkpoint at the largest scale alone; the scales that were trained are kept in its `config.json` as
`matryoshka_vis_token_scale`, which it ignores and we read again.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BaseImageProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
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
from m3.checkpoints.formats.clip import clip_preprocessing
from m3.checkpoints.keymap import Dropped, Keymap, Row
from m3.checkpoints.new_embeddings import NEW_TOKENS, room_for_placeholder
from m3.checkpoints.processors import choose_template, load_tokenizer, make_processor, token_of
from m3.model import M3Config
from m3.nesting import SCALE_OPTION, Tiling

KEYMAP = Keymap(
    rows=(
        Row("model.vision_tower.*", "model.vision_tower.*"),
        Row("model.multi_modal_projector.linear_1.*", "model.connector.0.*"),
        Row("model.multi_modal_projector.linear_2.*", "model.connector.2.*"),
        Row("model.language_model.*", "model.language_model.*"),
        Row("lm_head.weight", "lm_head.weight"),
    ),
    dropped=(
        Dropped(
            "*.embeddings.position_ids", "a buffer that counts upwards; newer versions make it anew"
        ),
        Dropped("*.rotary_emb.inv_freq", "a buffer computed from the configuration"),
    ),
)
IMAGE_SETTINGS = tuple(key for key in clip_preprocessing(336) if key != "image_processor_type")
"""What the image processors of these formats and of CLIP have in common."""

HubConfig = LlavaConfig | LlavaNextConfig


class HubLlava(Format):
    """The way there and back; a subclass names transformers' classes and says what is its own
    about tiles.
    """

    name: str  # in the table of formats
    config_class: type[LlavaConfig] | type[LlavaNextConfig]
    model_class: type[PreTrainedModel]
    processor_class: type[LlavaProcessor] | type[LlavaNextProcessor]
    keymap: Keymap = KEYMAP

    @abstractmethod
    def read_tiling(self, config: HubConfig) -> Tiling:
        """Tiling of a foreign model."""

    @abstractmethod
    def read_image_processor(self, folder: Path, tiling: Tiling) -> BaseImageProcessor:
        """The image processor of one tile, from the folder's own."""

    @abstractmethod
    def unfit(self, tiling: Tiling) -> dict[str, bool]:
        """Properties of a tiling that the format cannot hold: problems for `refuse`."""

    @abstractmethod
    def tile_settings(self, config: M3Config) -> dict[str, Any]:
        """Settings of the foreign configuration for the tiles of an image."""

    @abstractmethod
    def write_image_processor(
        self, image_processor: BaseImageProcessor, tiling: Tiling
    ) -> BaseImageProcessor:
        """transformers' own image processor that pads or cuts as ours does, with the same
        settings otherwise.
        """

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.config_class.model_type and "text_config" in config

    def read(self, folder: Path, options: Options) -> Native:
        if options.vision_tower is not None:
            raise ValueError(f"{folder} has its vision tower inside; leave --vision-tower out")
        config = self.config_class.from_pretrained(folder)
        layer, activation = config.vision_feature_layer, config.projector_hidden_act
        refuse(
            f"{folder}: this format is read without",
            {
                f"projector_hidden_act {activation!r} (gelu is)": activation != "gelu",
                "multimodal_projector_bias false": not config.multimodal_projector_bias,
                f"several vision_feature_layer {layer}": not isinstance(layer, int),
            },
        )
        assert isinstance(layer, int)  # as checked
        settings = read_json(folder / "config.json")
        native = M3Config(
            vision_config=config.vision_config,
            text_config=config.text_config,
            nesting={"kind": "grid_pool", "trained_scales": settings.get(SCALE_OPTION, [])},
            new_token_ids=settings.get(NEW_TOKENS),
            tiling=self.read_tiling(config),
            image_token_id=config.image_token_index,
            vision_feature_layer=layer,
            drop_class_token=config.vision_feature_select_strategy == "default",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
        )
        tokenizer = load_tokenizer(folder, options.tokenizer, native.text_config.vocab_size)
        processor = make_processor(
            native,
            self.read_image_processor(folder, native.tiling),
            tokenizer,
            choose_template(tokenizer, folder, native, options.chat_template),
            token_of(tokenizer, native.image_token_id),
        )
        weights_part = Part(folder, HubLayout(self.empty(config)), self.keymap)
        return Native(
            native, processor, (weights_part,), generation_config(native.text_config, folder)
        )

    def write(self, native: Native) -> Foreign:
        config = native.config
        connector, nesting = config.connector.kind, config.nesting.kind
        refuse(
            f"the format {self.name} cannot hold",
            {
                f"the connector {connector} (mlp2x_gelu is all it has)": connector != "mlp2x_gelu",
                f"the nesting {nesting} (grid_pool is)": nesting != "grid_pool",
                "an encoder's last, normalised output (it reads hidden states)": config.vision_feature_layer
                is None,
                **self.unfit(config.tiling),
            },
        )
        vocabulary, edit = room_for_placeholder(config)
        assert config.vision_feature_layer is not None  # as checked
        foreign = self.config_class(
            vision_config=config.vision_config.to_dict(),
            text_config=config.text_config.to_dict() | {"vocab_size": vocabulary},
            image_token_index=config.image_token_id,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy="default" if config.drop_class_token else "full",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.dtype,
            architectures=[self.model_class.__name__],
            **self.tile_settings(config),
        )
        foreign.update({SCALE_OPTION: list(config.nesting.trained_scales)})
        if config.new_token_ids is not None:
            foreign.update({NEW_TOKENS: config.new_token_ids})
        return Foreign(
            HubLayout(self.empty(foreign)), self.keymap, partial(self._save, native, foreign), edit
        )

    def empty(self, config: HubConfig) -> PreTrainedModel:
        """transformers' model without weights, on the meta device."""
        with torch.device("meta"):
            return self.model_class(config)

    def _save(self, native: Native, config: HubConfig, folder: Path) -> None:
        config.save_pretrained(folder)
        native.generation.save_pretrained(folder)
        processor = self.processor_class(
            image_processor=self.write_image_processor(
                native.processor.image_processor, native.config.tiling
            ),
            tokenizer=native.processor.tokenizer,
            patch_size=native.config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            chat_template=native.processor.chat_template,
            image_token=native.processor.image_token,
            num_additional_image_tokens=int(native.config.drop_class_token),
        )
        processor.save_pretrained(folder)
