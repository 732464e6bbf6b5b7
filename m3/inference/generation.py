"""One rule of decoding for chat, server and sweep: what the command says, and the token ids of the
checkpoint.

in:  a model with the `generation_config` of its checkpoint; out: where an answer ends, how long it
     may be, and `generate` without the checkpoint's other settings.

A checkpoint may say `repetition_penalty: 1.5`, `num_beams: 4` or `suppress_tokens: [...]`. Followed
by some entry points and overridden by others, the same model would answer the same question in
several ways, and a benchmark's score would depend on a file that its task does not know. So all but
the ids is named when the model is loaded, and has no effect.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from m3.model import M3ForConditionalGeneration

logger = logging.getLogger(__name__)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""All that is taken from a checkpoint's generation_config.json."""
NEUTRAL = {"use_cache": True, "output_attentions": False, "output_hidden_states": False}
"""Settings that transformers writes into every file, as they are when nothing is set."""


def end_token_ids(
    model: M3ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Tokens that end an answer: those that the checkpoint and its tokenizer name."""
    named = model.generation_config.eos_token_id
    listed = [named] if isinstance(named, int) else named or []
    return frozenset(token for token in (tokenizer.eos_token_id, *listed) if isinstance(token, int))


def stop_sequences(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Ids of the stop texts that hold a token of their own (`<|im_end|>`, `<|im_start|>user`),
    which decoding may leave out.
    """
    own = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    holding = [text for text in texts if any(token in text for token in own)]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in holding]


@contextmanager
def token_ids_alone(model: M3ForConditionalGeneration) -> Iterator[None]:
    """While the block runs, `generate` finds nothing in the model's own settings but token ids."""
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: own.to_dict()[name] for name in TOKEN_IDS})
    try:
        yield
    finally:
        model.generation_config = own


def warn_of_settings(model: M3ForConditionalGeneration, path: str | Path) -> None:
    """Names the settings of a checkpoint that have no effect, once, when it is loaded."""
    settings = {
        name: value
        for name, value in model.generation_config.to_diff_dict().items()
        if name not in (*TOKEN_IDS, "transformers_version")
        and not name.startswith("_")
        and value != NEUTRAL.get(name)
    }
    if settings:
        listed = ", ".join(f"{name}={value!r}" for name, value in sorted(settings.items()))
        logger.warning(
            "%s: generation_config.json says %s, which M3 does not follow: chat, server and sweep "
            "decode as their options say",
            path,
            listed,
        )


def answer_room(
    prompt_tokens: int, visual_tokens: int, pictures: int, positions: int, new_tokens: int
) -> int:
    """Tokens that an answer may have: `new_tokens`, or what the model's positions leave behind the
    prompt.

    Raises:
        ValueError: a prompt that leaves no room for an answer.
    """
    room = positions - prompt_tokens
    if room < 1:
        of_pictures = (
            f", {visual_tokens:,} of them for {pictures} picture{'s' * (pictures != 1)}"
            if pictures
            else ""
        )
        advice = (
            "choose a smaller scale, fewer pictures or frames, or less text"
            if pictures
            else "shorten the text"
        )
        raise ValueError(
            f"the prompt has {prompt_tokens:,} tokens{of_pictures}, and the model reads at most "
            f"{positions:,} with the answer: "
            f"{advice}"
        )
    return min(room, new_tokens)
