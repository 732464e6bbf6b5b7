"""Aria as transformers saves it (`rhymes-ai/Aria` on the hub): a mixture-of-experts decoder that
reads tiles of 490 or 980 pixels through 128 or 256 learned queries.

Our names stand beside those of transformers' modules (`AriaForConditionalGeneration`); `HubLayout`
adds the step from the names in the files: `language_model.model.*` and the experts' `fc1.weight`,
`fc2.weight`. No tensor is changed, split or
left out: `vision_tower.post_layernorm`, which Aria never reads, goes along.

The published model was trained at all queries of a tile, so 128 and 256 are its trained scales;
every smaller one is a prefix of them. A model trained further keeps its scales in
`matryoshka_vis_token_scale` of `config.json`.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaImageProcessorPil,
    AriaProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from m3.checkpoints.base import Foreign, Format, Native, Options, Part, generation_config, read_json
from m3.checkpoints.conversion import HubLayout
from m3.checkpoints.keymap import Keymap, Row
from m3.checkpoints.processors import load_image_processor, load_tokenizer
from m3.model import M3Config
from m3.nesting import SCALE_OPTION
from m3.processing import M3Processor
from m3.processing.aria_template import IMAGE_TOKEN, aria_template
from m3.processing.aria_tiles import AriaTileProcessor

PROJECTOR: Mapping[str, str] = {
    "query": "query",
    "cross_attn.layer_norm.*": "cross_attention.norm_query.*",
    "cross_attn.layer_norm_kv.*": "cross_attention.norm_features.*",
    "cross_attn.q_proj.weight": "cross_attention.q_proj.weight",
    "cross_attn.k_proj.weight": "cross_attention.k_proj.weight",
    "cross_attn.v_proj.weight": "cross_attention.v_proj.weight",
    "cross_attn.multihead_attn.in_proj_weight": "cross_attention.in_proj_weight",
    "cross_attn.multihead_attn.in_proj_bias": "cross_attention.in_proj_bias",
    "cross_attn.multihead_attn.out_proj.*": "cross_attention.out_proj.*",
    "cross_attn.linear.*": "cross_attention.linear.*",
    "layer_norm.*": "norm_out.*",
    "feed_forward.linear_in.weight": "linear_in.weight",
    "feed_forward.linear_out.weight": "linear_out.weight",
}
KEYMAP = Keymap(
    (
        Row("model.vision_tower.*", "model.vision_tower.*"),
        Row("model.language_model.*", "model.language_model.*"),
        Row("lm_head.weight", "lm_head.weight"),
        *(
            Row(f"model.multi_modal_projector.{theirs}", f"model.connector.{ours}")
            for theirs, ours in PROJECTOR.items()
        ),
    )
)


class Aria(Format):
    """The row of the table."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == AriaConfig.model_type

    def read(self, folder: Path, options: Options) -> Native:
        if options.vision_tower is not None:
            raise ValueError(
                f"{folder}: an Aria checkpoint has its vision tower inside; leave "
                "--vision-tower out"
            )
        aria = AriaConfig.from_pretrained(folder)
        vision, text, queries = _parts(aria)
        layer = aria.vision_feature_layer
        if vision.model_type != "idefics3_vision" or not isinstance(layer, int):
            raise ValueError(
                f"{folder}: an Aria checkpoint is read with the vision encoder idefics3_vision and "
                "one vision_feature_layer; "
                f"got {vision.model_type} and {layer}"
            )
        tokenizer = load_tokenizer(folder, options.tokenizer, text.vocab_size)
        native = M3Config(
            vision_config=vision,
            text_config=text,
            connector={
                "kind": "aria_projector",
                "num_queries": max(queries.values()),
                "num_heads": vision.num_attention_heads,
                "patch_queries": sorted(queries.items()),
            },
            nesting={
                "kind": "query_prefix",
                "trained_scales": aria.to_dict().get(SCALE_OPTION) or sorted(set(queries.values())),
            },
            tiling={"kind": "tiles"},
            image_token_id=aria.image_token_index,
            vision_feature_layer=layer,
            tie_word_embeddings=aria.tie_word_embeddings,
            initializer_range=aria.initializer_range,
            dtype=aria.dtype,
        )
        weights_part = Part(folder, HubLayout(empty_aria(aria)), KEYMAP)
        return Native(
            native,
            _processor(native, tokenizer, folder),
            (weights_part,),
            generation_config(text, folder),
        )

    def write(self, native: Native) -> Foreign:
        aria = aria_config(native.config)
        if not isinstance(native.processor.image_processor, AriaTileProcessor):
            raise ValueError(
                "the format aria needs Aria's image processor, AriaTileProcessor; the checkpoint "
                "has "
                f"{type(native.processor.image_processor).__name__}"
            )
        return Foreign(HubLayout(empty_aria(aria)), KEYMAP, partial(_save, native, aria))


def aria_config(config: M3Config) -> AriaConfig:
    """The configuration of transformers' Aria that computes what ours does.

    Raises:
        ValueError: parts that Aria does not have.
    """
    part_kinds = {
        "decoder": (config.text_config.model_type, "aria_text"),
        "vision encoder": (config.vision_config.model_type, "idefics3_vision"),
        "connector": (config.connector.kind, "aria_projector"),
        "nesting": (config.nesting.kind, "query_prefix"),
        "tiling": (config.tiling.kind, "tiles"),
    }
    wrong = [
        f"the {part_name} {part_kind} (it has {only} alone)"
        for part_name, (part_kind, only) in part_kinds.items()
        if part_kind != only
    ]
    if wrong:
        raise ValueError(
            f"the format aria cannot hold {', nor '.join(wrong)}. Keep the native checkpoint"
        )
    if (
        config.vision_feature_layer is None
        or config.connector.num_heads != config.vision_config.num_attention_heads
    ):
        raise ValueError(
            "the format aria takes a hidden state of the encoder, and as many heads in the "
            "projector as in the encoder; got "
            f"vision_feature_layer {config.vision_feature_layer} and connector.num_heads "
            f"{config.connector.num_heads}"
        )
    queries = {int(patches): int(number) for patches, number in config.connector.patch_queries}
    scales = list(config.nesting.trained_scales)
    further: dict[str, Any] = (
        {} if scales == sorted(set(queries.values())) else {SCALE_OPTION: scales}
    )
    return AriaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        vision_feature_layer=config.vision_feature_layer,
        projector_patch_to_query_dict=queries,
        image_token_index=config.image_token_id,
        initializer_range=config.initializer_range,
        tie_word_embeddings=config.tie_word_embeddings,
        dtype=config.dtype,
        architectures=["AriaForConditionalGeneration"],
        **further,
    )


def empty_aria(config: AriaConfig) -> AriaForConditionalGeneration:
    """transformers' model without weights, for its names."""
    with torch.device("meta"):
        return AriaForConditionalGeneration(config)


def _parts(aria: AriaConfig) -> tuple[Any, Any, Any]:
    """Encoder, decoder and {patches: queries}, which are never absent, whatever their types say."""
    return aria.vision_config, aria.text_config, aria.projector_patch_to_query_dict


def _processor(config: M3Config, tokenizer: PreTrainedTokenizerBase, folder: Path) -> M3Processor:
    """Aria's image settings with our image processor, and its chat format with the marks that
    training needs.
    """
    found = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if found != IMAGE_TOKEN:
        raise ValueError(
            f"{folder}: image_token_index {config.image_token_id} is the token {found!r}, expected "
            f"{IMAGE_TOKEN!r}. Give the "
            "tokenizer of the model with --tokenizer"
        )
    aria_processor: Any = load_image_processor(folder)
    patch = config.vision_config.patch_size
    image_processor = AriaTileProcessor(
        max_image_size=aria_processor.max_image_size,
        min_image_size=aria_processor.min_image_size,
        split_image=aria_processor.split_image,
        size_tokens=[
            (math.isqrt(patches) * patch, queries)
            for patches, queries in config.connector.patch_queries
        ],
        image_mean=aria_processor.image_mean,
        image_std=aria_processor.image_std,
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return M3Processor(
        image_processor,
        tokenizer,
        grid=config.grid,
        nesting={
            "kind": config.nesting.kind,
            "trained_scales": list(config.nesting.trained_scales),
        },
        tiling=config.tiling.to_dict(),
        image_token=IMAGE_TOKEN,
        chat_template=aria_template(),
    )


def _save(native: Native, aria: AriaConfig, folder: Path) -> None:
    """All but the weights, so that transformers' AutoProcessor and AutoModelForImageTextToText
    find what they look for.
    """
    aria.save_pretrained(folder)
    native.generation.save_pretrained(folder)
    native.processor.tokenizer.save_pretrained(folder)
    tokenizer_file = (
        folder / "tokenizer_config.json"
    )  # AriaProcessor asks the tokenizer for its image token
    tokenizer_file.write_text(
        json.dumps(
            read_json(tokenizer_file) | {"image_token": IMAGE_TOKEN}, indent=2, sort_keys=True
        )
        + "\n"
    )
    ours, template = native.processor.image_processor, native.processor.chat_template
    # `write` refuses the rest
    assert isinstance(ours, AriaTileProcessor) and isinstance(template, str)
    aria_processor = AriaImageProcessorPil(
        max_image_size=ours.max_image_size,
        min_image_size=ours.min_image_size,
        split_image=ours.split_image,
        image_mean=ours.image_mean,
        image_std=ours.image_std,
    )
    AriaProcessor(
        aria_processor,
        AutoTokenizer.from_pretrained(folder),
        chat_template=template,
        size_conversion={int(size): int(tokens) for size, tokens in ours.size_tokens},
    ).save_pretrained(folder)
