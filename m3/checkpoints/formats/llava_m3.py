"""The original LLaVA and M3 format: `model_type: llava_llama`, `mm_*` settings, the CLIP tower by
name or inside.

Sources: mu-cai/matryoshka-mm and haotian-liu/LLaVA (`llava/model/llava_arch.py`, `builder.py`,
`clip_encoder.py`). `matryoshka_vis_token_scale` in the configuration is the list of scales that
were trained; without it (plain LLaVA) one scale was, and the processor warns at the others.
LLaVA-NeXT and M3-NeXT are the same format with `image_aspect_ratio: anyres`
(m3/checkpoints/formats/llava_tiling.py).
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    BaseImageProcessor,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import CHAT_TEMPLATE_FILE

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
from m3.checkpoints.conversion import HubLayout, ModuleLayout
from m3.checkpoints.formats.clip import KNOWN_TOWERS, clip_preprocessing
from m3.checkpoints.formats.foreign_settings import plain_refusals
from m3.checkpoints.formats.llava_tiling import ROUNDING, problems, read_tiling, write_tiling
from m3.checkpoints.formats.vision_tower import empty_tower, tower_keymap
from m3.checkpoints.keymap import Dropped, Keymap, Row
from m3.checkpoints.new_embeddings import NEW_TOKENS
from m3.checkpoints.processors import (
    IMAGE_TOKEN,
    add_image_token,
    carries_images,
    clip_image_processor,
    load_image_processor,
    load_tokenizer,
    make_processor,
    vicuna,
)
from m3.checkpoints.weights import Weights
from m3.config import WORDS
from m3.model import M3Config
from m3.nesting import SCALE_OPTION

logger = logging.getLogger(__name__)

TOWER = "model.vision_tower.vision_tower.vision_model."
"""Where the tower's tensors lie when the checkpoint has them."""

CONNECTOR_ROWS: Mapping[str, tuple[Row, ...]] = {
    "mlp2x_gelu": (Row("model.mm_projector.*", "model.connector.*"),),
    "linear": (Row("model.mm_projector.*", "model.connector.0.*"),),
}
ROWS = (
    Row(f"{TOWER}*", "model.vision_tower.*"),
    Row("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
    Row("model.layers.*", "model.language_model.layers.*"),
    Row("model.norm.weight", "model.language_model.norm.weight"),
    Row("model.image_newline", "model.image_newline"),
    Row("lm_head.weight", "lm_head.weight"),
)
DROPPED = (
    Dropped(
        "*.embeddings.position_ids", "a buffer that counts upwards; newer versions make it anew"
    ),
    Dropped("*.rotary_emb.inv_freq", "a buffer computed from the configuration"),
)
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "attention_dropout",
    "pretraining_tp",
    "tie_word_embeddings",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
REQUIRED: Mapping[str, tuple[Any, ...]] = {
    # llava_mistral, llava_mpt, ...: other decoders and chat formats
    "model_type": ("llava_llama", "llava"),
    "mm_vision_select_feature": ("patch",),
    "mm_projector_type": tuple(CONNECTOR_ROWS),
    "mm_use_im_start_end": (False,),
}
"""Settings that change what the model computes, and the values that are read."""

TYPES: Mapping[str, type] = {"mm_vision_tower": str, "mm_vision_select_layer": int}
"""Settings that must be there."""


class LlavaM3(Format):
    """The row of the table."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return "mm_vision_tower" in config

    def read(self, folder: Path, options: Options) -> Native:
        config = read_json(folder / "config.json")
        for config_key, allowed_values in REQUIRED.items():
            if config.get(config_key) not in allowed_values:
                values_text = " or ".join(map(repr, allowed_values))
                raise ValueError(
                    f"{folder}: {config_key} is {config.get(config_key)!r}; this format is read "
                    f"with {values_text} only"
                )
        for config_key, value_type in TYPES.items():
            if type(config.get(config_key)) is not value_type:
                raise ValueError(
                    f"{folder}: {config_key} is {config.get(config_key)!r}; expected "
                    f"{WORDS[value_type]}, as LLaVA writes it"
                )
        text_config = LlamaConfig(
            **{config_key: config[config_key] for config_key in TEXT_KEYS if config_key in config}
        )
        vision_config, image_processor = _tower(folder, config["mm_vision_tower"], options)
        tokenizer = load_tokenizer(folder, options.tokenizer, text_config.vocab_size)
        value_type = config["mm_projector_type"]
        native = M3Config(
            vision_config=vision_config,
            text_config=text_config,
            connector={"kind": value_type},
            nesting={"kind": "grid_pool", "trained_scales": config.get(SCALE_OPTION) or []},
            tiling=read_tiling(config, vision_config.image_size),
            image_token_id=add_image_token(tokenizer),
            new_token_ids=config.get(NEW_TOKENS),
            vision_feature_layer=config["mm_vision_select_layer"],
            drop_class_token=True,
            tie_word_embeddings=text_config.tie_word_embeddings,
            dtype=config.get("torch_dtype"),
        )
        keymap = Keymap(ROWS + CONNECTOR_ROWS[value_type], DROPPED)
        weights_parts = [
            Part(folder, ModuleLayout(), keymap),
            *_outer_tower(folder, vision_config, options),
        ]
        template = options.chat_template or _saved_template(folder, tokenizer) or vicuna(tokenizer)
        processor = make_processor(native, image_processor, tokenizer, template, IMAGE_TOKEN)
        return Native(
            native, processor, tuple(weights_parts), generation_config(text_config, folder)
        )

    def write(self, native: Native) -> Foreign:
        config = native.config
        decoder, encoder = config.text_config.model_type, config.vision_config.model_type
        refuse(
            "the format m3 cannot hold",
            {
                f"a decoder of type {decoder} (llama is all it has)": decoder != "llama",
                f"a vision encoder of type {encoder} (clip_vision_model is)": encoder
                != "clip_vision_model",
                f"the connector {config.connector.kind}": config.connector.kind
                not in CONNECTOR_ROWS,
                f"the nesting {config.nesting.kind} (grid_pool is)": config.nesting.kind
                != "grid_pool",
                "an encoder's last, normalised output": config.vision_feature_layer is None,
                "several chat templates": not isinstance(native.processor.chat_template, str),
                **problems(config.tiling, ROUNDING),
            },
        )
        keymap = Keymap(ROWS + CONNECTOR_ROWS[config.connector.kind])
        return Foreign(ModuleLayout(), keymap, partial(_save, native))


def _saved_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template that `_save` wrote; the original code knows no such file."""
    template_file = folder / CHAT_TEMPLATE_FILE
    if not template_file.is_file():
        return None
    template = template_file.read_text(encoding="utf-8")
    if not carries_images(tokenizer, template, IMAGE_TOKEN):
        raise ValueError(
            f"{template_file} loses the image of a message (given as a string with {IMAGE_TOKEN}, "
            "or as a list of parts). Delete it for Vicuna's format, or give another with "
            "--chat-template FILE"
        )
    return template


def _tower(
    folder: Path, name: str, options: Options
) -> tuple[PreTrainedConfig, BaseImageProcessor]:
    """Configuration and image processor of the tower: the user's, the checkpoint's own folder,
    or one known by name.
    """
    tower_folder = options.vision_tower or folder / name
    if (tower_folder / "config.json").is_file():
        with plain_refusals(tower_folder):
            config = AutoConfig.from_pretrained(tower_folder)
        return empty_tower(config).config, load_image_processor(tower_folder)
    if name not in KNOWN_TOWERS:
        raise ValueError(
            f"{folder} names the vision tower {name!r}, which is neither a folder in it nor one of "
            f"{', '.join(KNOWN_TOWERS)}. Give its folder with --vision-tower"
        )
    config = AutoConfig.for_model(**KNOWN_TOWERS[name])
    return config, clip_image_processor(clip_preprocessing(config.image_size))


def _outer_tower(folder: Path, config: PreTrainedConfig, options: Options) -> list[Part]:
    """A tower that is not inside the checkpoint; nothing where it is, and a notice where another
    was given all the same.
    """
    if any(tensor_name.startswith(TOWER) for tensor_name in Weights(folder).meta):
        if options.vision_tower is not None:
            logger.warning(
                "%s contains its vision tower: its weights are kept, and of %s only the "
                "configuration and the treatment of pixels (size, image_mean ...) are taken. Leave "
                "--vision-tower out unless you mean that",
                folder,
                options.vision_tower,
            )
        return []
    if options.vision_tower is None:
        raise ValueError(
            f"{folder} does not contain its vision tower (no tensor {TOWER}*). Give the folder of "
            "the CLIP model that it was trained with: --vision-tower DIR"
        )
    return [Part(options.vision_tower, HubLayout(empty_tower(config)), tower_keymap(config))]


def _save(native: Native, folder: Path) -> None:
    """`config.json`, generation configuration, tokenizer, chat template; the tower's
    configuration where it has no name.
    """
    config, text = native.config, native.config.text_config.to_dict()
    vision = config.vision_config.to_dict()
    known_towers = [
        tower_name
        for tower_name, tower in KNOWN_TOWERS.items()
        if all(vision[config_key] == tower[config_key] for config_key in tower)
    ]
    tower = known_towers[0] if known_towers else "vision_tower_src"
    rope = text["rope_parameters"]
    original = {config_key: text[config_key] for config_key in TEXT_KEYS if config_key in text} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **write_tiling(config.tiling),
        SCALE_OPTION: sorted(config.nesting.trained_scales, reverse=True),
        **({} if config.new_token_ids is None else {NEW_TOKENS: config.new_token_ids}),
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": config.connector.kind,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "tokenizer_model_max_length": min(
            native.processor.tokenizer.model_max_length, text["max_position_embeddings"]
        ),
        "tokenizer_padding_side": "right",
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(original, indent=2, sort_keys=True) + "\n")
    native.generation.save_pretrained(folder)
    native.processor.tokenizer.save_pretrained(folder)
    template = native.processor.chat_template
    assert isinstance(template, str)  # `write` refuses several
    template = template.replace(native.processor.image_token, IMAGE_TOKEN)
    # for `read`; LLaVA's code does not look at it
    (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if not known_towers:
        config.vision_config.save_pretrained(folder / tower)
        native.processor.image_processor.save_pretrained(folder / tower)
