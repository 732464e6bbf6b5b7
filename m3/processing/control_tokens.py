"""Control tokens in text that other people wrote, read as the plain characters that they are.

In: a processor and text: a turn of a conversation, a document, a question. Out: text in which every
control token (`<|im_end|>`, `<image>`) is fenced while a chat template renders it, and ids in which
it is spelled out: it can neither end a turn nor claim an image. Training, chat, sweeps and the
server all come here, and `processor.apply_chat_template(..., sanitize_control_tokens=True)` gives
the same ids.
"""

import re

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import mark_control_tokens

from m3.processing.processor import M3Processor

# Private-use characters around a control token, and one behind its first character: a template that
# replaces its image token (Aria's) must not find it between the fences. transformers' marks for the
# same end have no such character, so they are put in their place only once the template is done.
_OPEN, _CLOSE, _WITHIN = "\U000f0010", "\U000f0011", "\U000f0012"
_START_MARK, _END_MARK = mark_control_tokens("x", re.compile("x")).split("x")
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_WITHIN}{_START_MARK}{_END_MARK}]")
FENCED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)
"""A fenced control token."""


def control_tokens(processor: M3Processor) -> re.Pattern[str]:
    """The image token, and what the tokenizer or the chat template treats as more than text."""
    added_tokens = processor.tokenizer.added_tokens_decoder.values()
    template = str(processor.chat_template)
    contents = {
        token.content
        for token in added_tokens
        if token.content.strip() and (token.special or token.content in template)
    }
    longest_first = sorted({*contents, processor.image_token}, key=len, reverse=True)
    return re.compile("|".join(re.escape(content) for content in longest_first))


def fence(text: str, tokens: re.Pattern[str]) -> str:
    """`text` with every control token fenced; fences that are in it already are taken away."""
    return tokens.sub(
        lambda token: f"{_OPEN}{token[0][0]}{_WITHIN}{token[0][1:]}{_CLOSE}", _MARKS.sub("", text)
    )


def encode_fenced(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a rendered text, with what is fenced spelled out; no special tokens are added."""
    marked = text.replace(_OPEN, _START_MARK).replace(_CLOSE, _END_MARK).replace(_WITHIN, "")
    # who reads the ids tells of too many; the tokenizer would warn of those too
    return tokenizer(marked, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)[
        "input_ids"
    ]


def encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], np.ndarray]:
    """The ids of `encode_fenced`, and for each the characters [start, end) of `text` it stands for.

    Spans are int64 `[t, 2]`; tokens of what is fenced stand for all of it. transformers encodes
    marked text without spans, so its `encode_marked_chat` is followed here step by step; the
    tokenizer must be a fast one.
    """
    newline_ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    spans: list[np.ndarray] = []
    position = 0
    # split() with one group gives plain, fenced, plain, fenced, ..., plain
    for number, piece in enumerate(FENCED.split(text)):
        if number % 2:
            characters = piece.replace(_WITHIN, "")
            piece_ids = _encode_characters(tokenizer, f"\n{characters}")
            if piece_ids[: len(newline_ids)] == newline_ids:
                piece_ids = piece_ids[len(newline_ids) :]
            else:
                piece_ids = _encode_characters(tokenizer, characters)
            end = position + len(_OPEN) + len(piece) + len(_CLOSE)
            piece_spans = np.tile(np.asarray([[position, end]]), (len(piece_ids), 1))
        else:
            piece_ids, piece_spans = _encode_piece(tokenizer, piece, newline_ids, number > 0)
            piece_spans = piece_spans + position
            end = position + len(piece)
        ids += piece_ids
        spans.append(piece_spans)
        position = end
    return ids, np.concatenate(spans).astype(np.int64)


def _encode_piece(
    tokenizer: PreTrainedTokenizerBase, piece: str, newline_ids: list[int], follows: bool
) -> tuple[list[int], np.ndarray]:
    """Ids and spans of plain text, which may follow a fenced token."""
    prefix = "\n" if follows and piece else ""
    # behind a newline, sentencepiece adds no space as it does at the start of a text
    encoded = tokenizer(prefix + piece, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
    if not prefix:
        return ids, spans
    if ids[: len(newline_ids)] != newline_ids:
        return _encode_piece(tokenizer, piece, newline_ids, follows=False)
    return ids[len(newline_ids) :], spans[len(newline_ids) :] - len(prefix)


def _encode_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of the characters of `text`, whatever added tokens it spells."""
    backend = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)  # others give no spans, and fail before
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    splits = [text]
    if backend.pre_tokenizer is not None:
        splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for split in splits for token in backend.model.tokenize(split)]
