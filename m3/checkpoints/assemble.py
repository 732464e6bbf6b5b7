"""Any vision encoder and any causal decoder become one new checkpoint, to be trained (`m3 assemble`).

in: a folder (or hub id) of each, a connector and a nesting by name; way: encoder and decoder keep
their weights; the connector gets random ones, and so do the new rows of the embedding, for the
image token and for what the chat format needs (drawn like the old rows);
out: a native checkpoint, streamed like any conversion.
"""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from m3.checkpoints.base import Native, Part, empty_model, generation_config
from m3.checkpoints.conversion import HubLayout
from m3.checkpoints.convert import write
from m3.checkpoints.formats import NATIVE
from m3.checkpoints.formats.foreign_settings import plain_refusals
from m3.checkpoints.formats.vision_tower import empty_tower, tower_keymap
from m3.checkpoints.keymap import Dropped, Keymap, Row
from m3.checkpoints.new_embeddings import drawn_rows
from m3.checkpoints.processors import (
    IMAGE_TOKEN,
    add_tokens,
    load_image_processor,
    make_processor,
    own_template,
)
from m3.files import refuse_existing
from m3.model import M3Config
from m3.model.backbone import build_connector, build_reducer
from m3.model.packing_check import choose_packed_attention
from m3.model.vision import vision_grid, vision_inputs
from m3.nesting import get_nesting
from m3.processing.chat_template import CONTROL_TOKENS

logger = logging.getLogger(__name__)

FEATURE_LAYERS = {"clip_vision_model": -2}
"""Hidden states that LLaVA reads, by encoder; of others the last, normalised output is read."""


LOGIT_CHANGES = (
    *(
        "final_logit_softcapping",
        "logits_soft_cap",
        "softcap",
        "logit_scale",
        "logits_scaling",
        "lm_head_multiplier",
    ),
    "output_multiplier",
)
"""Settings by which some decoders (Gemma 2, Cohere, Granite, Falcon-H1) change their logits
behind `lm_head`; M3 does not.
"""


@dataclass(frozen=True)
class Choices:
    """Settings of the parts between encoder and decoder, and the seed of the new weights.

    `queries`: of a connector that has learned queries; None for its default. `scales`: to be
    trained; none for the largest.
    """

    connector: str = "mlp2x_gelu"
    nesting: str = "grid_pool"
    queries: int | None = None
    scales: Sequence[int] = ()
    chat_template: str | None = None
    seed: int = 0


def assemble(vision: Path, decoder: Path, dest: Path, choices: Choices) -> None:
    """Writes the native checkpoint `dest`.

    Raises:
        ValueError: a folder that holds no such model, an encoder whose tokens do not form its grid,
            an unreachable scale.
    """
    refuse_existing(dest)
    with plain_refusals(vision):
        tower_config = empty_tower(AutoConfig.from_pretrained(vision)).config
    with plain_refusals(decoder):
        text_config = AutoConfig.from_pretrained(decoder)
    decoder_part, tokenizer, chat, new_ids = _decoder_part(decoder, text_config, choices)
    tower_type, image_token_id = tower_config.model_type, tokenizer.get_vocab()[IMAGE_TOKEN]
    config = M3Config(
        vision_config=tower_config,
        text_config=text_config.to_dict()
        | {"vocab_size": max(text_config.vocab_size, len(tokenizer))},
        connector={"kind": choices.connector}
        | ({} if choices.queries is None else {"num_queries": choices.queries}),
        nesting={"kind": choices.nesting, "trained_scales": list(choices.scales)},
        image_token_id=image_token_id,
        new_token_ids=[token for token in new_ids if token != image_token_id],
        vision_feature_layer=FEATURE_LAYERS.get(tower_type),
        drop_class_token=has_class_token(tower_config),
        tie_word_embeddings=text_config.tie_word_embeddings,
        dtype=text_config.dtype,
    )
    native = Native(
        config=config,
        processor=make_processor(config, load_image_processor(vision), tokenizer, chat),
        parts=(
            Part(vision, HubLayout(empty_tower(tower_config)), tower_keymap(tower_config)),
            decoder_part,
        ),
        generation=_generation(text_config, decoder, tokenizer, chat),
        new=new_connector(config, choices.seed),
    )
    logger.info(
        "an image gives a grid of %s tokens: scales %s can be reached; to be trained: %s",
        config.grid if isinstance(config.grid, int) else "x".join(map(str, config.grid)),
        ", ".join(map(str, get_nesting(choices.nesting).reachable(config.grid))),
        ", ".join(map(str, config.nesting.trained_scales)),
    )
    logger.info("%d new rows in the embedding (ids %s), drawn like the old", len(new_ids), new_ids)
    write(native, dest, NATIVE, f"{vision} and {decoder}")
    if choose_packed_attention(config.text_config).implementation is None:
        logger.info(
            "no attention keeps packed sequences of a %s decoder apart: train with "
            "data.pack_length: null",
            text_config.model_type,
        )


def has_class_token(config: PreTrainedConfig) -> bool:
    """Tell whether the encoder gives one token more than its grid has patches, from one layer of
    random weights.
    """
    shallow = deepcopy(config)
    shallow.num_hidden_layers = 1
    rows, columns = vision_grid(shallow)
    pixels = torch.zeros(1, 3, *vision_inputs(shallow).image_size(shallow))
    with torch.no_grad():
        tokens = AutoModel.from_config(shallow)(
            **vision_inputs(shallow).inputs(shallow, pixels, None)
        ).last_hidden_state
    surplus = tokens.shape[1] - rows * columns
    if surplus not in (0, 1):
        raise ValueError(
            f"a vision encoder of type {config.model_type} gives {tokens.shape[1]} tokens for a "
            f"grid of {rows}x{columns}; "
            "expected as many, or one class token more"
        )
    return surplus == 1


def new_connector(config: M3Config, seed: int) -> dict[str, Tensor]:
    """Weights of the connector and of the reducer as a new model would draw them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new_parts = {"connector": build_connector(config), "reducer": build_reducer(config)}
        for new_part in new_parts.values():
            new_part.apply(empty_model(config)._init_weights)
    return {
        f"model.{part_name}.{weight_name}": tensor.to(config.dtype)
        for part_name, new_part in new_parts.items()
        for weight_name, tensor in new_part.state_dict().items()
    }


def _decoder_part(
    folder: Path, config: PreTrainedConfig, choices: Choices
) -> tuple[Part, PreTrainedTokenizerBase, str | None, list[int]]:
    """The decoder's part of the weights, its tokenizer and chat template (None: ChatML), and the
    ids that are new.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{folder}: a model of type {config.model_type} is no causal decoder")
    settings = config.to_dict()
    changes = {
        setting_name: settings[setting_name]
        for setting_name in LOGIT_CHANGES
        if settings.get(setting_name) not in (None, 1)
    }
    if changes:
        raise ValueError(
            f"{folder}: a decoder of type {config.model_type} changes its logits behind lm_head "
            f"({changes}), which M3 does not: "
            "its probabilities would be others. Use another decoder"
        )
    tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder))
    chat = choices.chat_template or own_template(tokenizer)
    before = len(tokenizer)
    new_ids = add_tokens(tokenizer, (IMAGE_TOKEN,) if chat else (IMAGE_TOKEN, *CONTROL_TOKENS))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _check_names(folder, model)
    keymap = Keymap(
        (
            Row(f"{model.base_model_prefix}.*", "model.language_model.*"),
            Row("lm_head.weight", "lm_head.weight"),
        ),
        (
            Dropped("*.rotary_emb.inv_freq", "a buffer computed from the configuration"),
            *(
                (Dropped("lm_head.weight", "the embedding once more"),)
                if config.tie_word_embeddings
                else ()
            ),
        ),
    )
    table_rows = max(config.vocab_size, len(tokenizer))
    return (
        Part(
            folder, HubLayout(model), keymap, drawn_rows(new_ids, before, table_rows, choices.seed)
        ),
        tokenizer,
        chat,
        new_ids,
    )


def _check_names(folder: Path, model: PreTrainedModel) -> None:
    """M3 finds a decoder's tables by the names that most decoders give them; transformers says
    what this one's are.
    """
    module_names = {id(module): module_name for module_name, module in model.named_modules()}
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    prefix, kind = model.base_model_prefix, model.config.model_type
    embedding_name, output_name = module_names[id(embedding)], module_names.get(id(output))
    if (embedding_name, output_name) != (f"{prefix}.embed_tokens", "lm_head"):
        raise ValueError(
            f"{folder}: a decoder of type {kind} keeps its embedding as {embedding_name!r} and its "
            f"output as {output_name!r}; m3 assemble joins decoders that have "
            f"'{prefix}.embed_tokens' and 'lm_head', as Llama, Qwen, Mistral, Mixtral and gpt-oss"
        )
    if output is not None and "bias" in dict(output.named_parameters()):
        raise ValueError(
            f"{folder}: a decoder of type {kind} adds a bias to its logits, for which M3's lm_head "
            "has no place. Use another decoder"
        )


def _generation(
    config: PreTrainedConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, chat: str | None
) -> GenerationConfig:
    """As the decoder's own; ChatML's end of a turn ends an answer too."""
    generation = generation_config(config, folder)
    end_token = tokenizer.get_vocab()[CONTROL_TOKENS[1]] if chat is None else None
    known_ends = (
        generation.eos_token_id
        if isinstance(generation.eos_token_id, list)
        else [generation.eos_token_id]
    )
    generation.eos_token_id = sorted(
        {end_id for end_id in (*known_ends, end_token) if end_id is not None}
    )
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    return generation
