"""A sample's text becomes ids, once; every scale is expanded from these ids.

Comes in: a `Sample` or a `Document`. Goes out: `Tokenized`, with ONE image token per image and a
mask that is True where the model is trained. Of a conversation that is the answers (but those of
weight 0) and their end token, as the chat template's `{% generation %}` marks say; of a document
all of its text and the end token behind it, but not its first token, which nothing leads to (in a
packed row it would be predicted from the end of another sample).

Control tokens that stand literally in a turn (`<|im_start|>` in a question about chat formats,
`<image>` in an answer or in a part that is text) are encoded as the plain characters they are. They
can neither open a turn nor claim an image, and the sample is kept.
`processor.apply_chat_template(..., sanitize_control_tokens=True)` does the same when the model is
used.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from m3.data.sample import AnySample, Document, Sample
from m3.processing.control_tokens import control_tokens
from m3.processing.processor import M3Processor

# Private-use characters that fence a control token found in a turn while the template renders
# (other than those transformers uses for the same end, so that the two cannot meet). The third
# stands within it, so that a template that replaces its image token (Aria's) does not find it
# either.
_OPEN, _CLOSE, _WITHIN = "\U000f0010", "\U000f0011", "\U000f0012"
_FENCES = re.compile(f"[{_OPEN}{_CLOSE}{_WITHIN}]")
_FENCED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)


class TemplateRefusalError(ValueError):
    """A sample that the chat template has no place for."""


@dataclass(frozen=True)
class Tokenized:
    """Ids of one sample before expansion; `labels_mask[t]` says whether token t is learned."""

    input_ids: list[int]
    labels_mask: list[bool]
    num_images: int


def tokenize_sample(sample: AnySample, processor: M3Processor) -> Tokenized:
    """Ids and mask of a conversation or a document.

    Raises:
        ValueError: the chat template has no generation marks, or loses or invents an image; the
            tokenizer has no token that ends a document.
    """
    if isinstance(sample, Document):
        return _document(sample, processor)
    return _conversation(sample, processor)


def _document(document: Document, processor: M3Processor) -> Tokenized:
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no token that ends a document; set tokenizer.eos_token")
    texts, fenced = _fence(document.texts, processor)
    ids, _ = _encode(processor.image_token.join(texts), processor, fenced)
    start = (
        [tokenizer.bos_token_id] if tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else []
    )
    ids = [*start, *ids, tokenizer.eos_token_id]
    mask = [token != processor.image_token_id for token in ids]
    mask[0] = False
    found = len(mask) - sum(mask) - (ids[0] != processor.image_token_id)
    assert found == len(document.images), f"{found} image tokens for {len(document.images)} images"
    return Tokenized(ids, mask, len(document.images))


def _conversation(sample: Sample, processor: M3Processor) -> Tokenized:
    """Rendered with the processor's chat template, and encoded without special tokens of the
    tokenizer's own.
    """
    messages, fenced = _messages(sample, processor)
    template = processor.chat_template
    if not isinstance(template, str) or "generation" not in template:
        raise ValueError(
            "the processor's chat template does not mark what the assistant says with {% "
            "generation %} ... "
            "{% endgeneration %}, so training cannot tell answers from prompts. Use the default "
            "template, or add the "
            "marks"
        )
    try:
        rendered, generated = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **processor.tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        raise TemplateRefusalError(
            f"sample {sample.id!r}: the chat template refuses it ({error})"
        ) from error
    if not _writes_system(messages, rendered[0]):
        raise TemplateRefusalError(
            f"sample {sample.id!r}: has a system prompt, and the chat template writes none. Put it "
            "into the first question, "
            "or use a template that has a place for it"
        )
    ids, spans = _encode(rendered[0], processor, fenced)
    mask = _overlaps(
        spans, np.asarray(_learned(sample, cast(Any, generated[0])), dtype=np.int64).reshape(-1, 2)
    )
    found = ids.count(processor.image_token_id)
    if found != len(sample.images):
        raise ValueError(
            f"sample {sample.id!r}: {len(sample.images)} images, but its text became {found} image "
            "tokens. The "
            f"chat template must write a turn's text as it stands, with {processor.image_token} as "
            "one token"
        )
    return Tokenized(ids, mask.tolist(), len(sample.images))


def _writes_system(messages: Sequence[dict[str, str]], rendered: str) -> bool:
    """Tell whether the system prompt is in the text once more than in the turns, which may quote
    it; True without one.
    """
    system = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    return not system or rendered.count(system) > sum(
        message["content"].count(system) for message in messages[1:]
    )


def _learned(sample: Sample, generated: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of learned answers, of all that the template marks as the assistant's."""
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if all(turn.learned for turn in answers):
        return generated
    if len(generated) != len(answers):
        raise TemplateRefusalError(
            f"sample {sample.id!r}: has answers of weight 0, and the chat template marks "
            f"{len(generated)} stretches of "
            f"{len(answers)} answers, so it cannot be told which they are. Mark each answer once "
            f"with {{% generation %}}"
        )
    return [stretch for stretch, turn in zip(generated, answers, strict=True) if turn.learned]


def _messages(sample: Sample, processor: M3Processor) -> tuple[list[dict[str, str]], bool]:
    """The turns as chat messages, the file's image mark as the tokenizer's image token; were
    control tokens fenced?
    """
    messages: list[dict[str, str]] = []
    any_fenced = False
    for turn in sample.turns:
        pieces, fenced = _fence(turn.texts, processor)
        any_fenced |= fenced
        messages.append({"role": turn.role, "content": processor.image_token.join(pieces)})
    return messages, any_fenced


def _fence(texts: Sequence[str], processor: M3Processor) -> tuple[list[str], bool]:
    """The texts with every control token fenced; was there one?"""
    controls = _control_pattern(processor, len(processor.tokenizer))
    plain = [_FENCES.sub("", text) for text in texts]
    fenced = [
        controls.sub(lambda token: f"{_OPEN}{token[0][0]}{_WITHIN}{token[0][1:]}{_CLOSE}", text)
        for text in plain
    ]
    return fenced, fenced != plain


@functools.lru_cache(maxsize=8)
def _control_pattern(processor: M3Processor, tokens: int) -> re.Pattern[str]:
    """`tokens` of the tokenizer, so that it is made anew where some are added."""
    return control_tokens(processor)


def _encode(text: str, processor: M3Processor, fenced: bool) -> tuple[list[int], np.ndarray]:
    """Ids, and for each the characters [start, end) of `text` it stands for, `[t, 2]`."""
    if not fenced:
        encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(
            -1, 2
        )
    ids: list[int] = []
    spans: list[np.ndarray] = []
    # split() with one group gives plain, fenced, plain, fenced, ..., plain
    position = 0
    for number, piece in enumerate(_FENCED.split(text)):
        is_fenced = number % 2 == 1
        position += is_fenced * len(_OPEN)
        encoded = processor.tokenizer(
            piece.replace(_WITHIN, ""),
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=is_fenced,
        )
        ids += encoded["input_ids"]
        spans.append(
            np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2) + position
        )
        position += len(piece) + is_fenced * len(_CLOSE)
    return ids, np.concatenate(spans)


def _overlaps(spans: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """True for each token `[t, 2]` that shares a character with a generated stretch `[g, 2]`."""
    shared = (spans[:, None, 0] < generated[None, :, 1]) & (
        spans[:, None, 1] > generated[None, :, 0]
    )
    return np.asarray(shared.any(axis=1))
