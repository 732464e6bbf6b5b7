"""Decoding rule of chat, server and sweep: options of the caller, token ids of the checkpoint.

in:  a model with the `generation_config` of its checkpoint; out: where an answer ends, how long it
     may be, and `generate` without the checkpoint's other settings.

A checkpoint may set `repetition_penalty: 1.5`, `num_beams: 4` or `suppress_tokens: [...]`. Followed
by some entry points and overridden by others, the same model would answer the same question in
several ways, and a benchmark's score would depend on a file that its task does not know. So a
warning at loading names all settings but the ids, and none has an effect.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from m3.model import M3ForConditionalGeneration

logger = logging.getLogger(__name__)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Entries of a checkpoint's generation_config.json that are used."""
NEUTRAL_SETTINGS = {"use_cache": True, "output_attentions": False, "output_hidden_states": False}
"""Settings that transformers writes into every file, with their defaults."""


def end_token_ids(
    model: M3ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Tokens that end an answer, according to the checkpoint and its tokenizer."""
    configured_ids = model.generation_config.eos_token_id
    end_ids = [configured_ids] if isinstance(configured_ids, int) else configured_ids or []
    return frozenset(
        token for token in (tokenizer.eos_token_id, *end_ids) if isinstance(token, int)
    )


def stop_sequences(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Ids of the stop texts with added tokens (`<|im_end|>`), which decoding may leave out."""
    added_tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    token_texts = [text for text in texts if any(token in text for token in added_tokens)]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in token_texts]


@contextmanager
def token_ids_alone(model: M3ForConditionalGeneration) -> Iterator[None]:
    """Reduce the model's `generation_config` to its token ids inside the block."""
    checkpoint_config = model.generation_config
    model.generation_config = GenerationConfig(
        **{name: checkpoint_config.to_dict()[name] for name in TOKEN_IDS}
    )
    try:
        yield
    finally:
        model.generation_config = checkpoint_config


def warn_of_settings(model: M3ForConditionalGeneration, path: str | Path) -> None:
    """Warn of settings in generation_config.json that have no effect."""
    settings = {
        name: value
        for name, value in model.generation_config.to_diff_dict().items()
        if name not in (*TOKEN_IDS, "transformers_version")
        and not name.startswith("_")
        and value != NEUTRAL_SETTINGS.get(name)
    }
    if settings:
        setting_list = ", ".join(f"{name}={value!r}" for name, value in sorted(settings.items()))
        logger.warning(
            "%s: generation_config.json says %s, which M3 does not follow: chat, server and sweep "
            "decode as their options say",
            path,
            setting_list,
        )


def answer_room(
    prompt_tokens: int, visual_tokens: int, picture_count: int, max_positions: int, new_tokens: int
) -> int:
    """Token limit of an answer: `new_tokens`, or the positions left after the prompt if fewer.

    Raises:
        ValueError: a prompt that leaves no room for an answer.
    """
    free_positions = max_positions - prompt_tokens
    if free_positions < 1:
        picture_clause = (
            f", {visual_tokens:,} of them for {picture_count} picture{'s' * (picture_count != 1)}"
            if picture_count
            else ""
        )
        advice = (
            "choose a smaller scale, fewer pictures or frames, or less text"
            if picture_count
            else "shorten the text"
        )
        raise ValueError(
            f"the prompt has {prompt_tokens:,} tokens{picture_clause}, and the model reads at most "
            f"{max_positions:,} with the answer: {advice}"
        )
    return min(free_positions, new_tokens)
