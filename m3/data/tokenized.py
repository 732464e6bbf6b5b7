"""Tokenisation of a sample, once: every scale is expanded from these ids.

In: a `Sample` or a `Document`. Out: `Tokenized`, with ONE image token per image and a mask that is
True where the model is trained. Of a conversation that is the answers (but those of weight 0) and
their end token, as the chat template's `{% generation %}` marks say; of a document all of its text
and the end token behind it, but not its first token, which nothing leads to (in a packed row it
would be predicted from the end of another sample).

Control tokens that stand literally in a turn (`<|im_start|>` in a question about chat formats,
`<image>` in an answer or in a part that is text) are encoded as the plain characters they are
(m3/processing/control_tokens.py), and the sample is kept.
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
from m3.processing.control_tokens import control_tokens, encode_with_spans, fence
from m3.processing.processor import M3Processor


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
        return _tokenize_document(sample, processor)
    return _tokenize_conversation(sample, processor)


def _tokenize_document(document: Document, processor: M3Processor) -> Tokenized:
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no token that ends a document; set tokenizer.eos_token")
    text_ids, _ = encode_with_spans(tokenizer, _join_texts(document.texts, processor))
    starts_texts = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    ids = [*([tokenizer.bos_token_id] * starts_texts), *text_ids, tokenizer.eos_token_id]
    labels_mask = [token != processor.image_token_id for token in ids]
    labels_mask[0] = False
    num_images = ids.count(processor.image_token_id)
    assert num_images == len(document.images), (
        f"{num_images} image tokens for {len(document.images)} images"
    )
    return Tokenized(ids, labels_mask, num_images)


def _tokenize_conversation(sample: Sample, processor: M3Processor) -> Tokenized:
    """Rendered with the chat template; the tokenizer adds no special tokens of its own."""
    template = processor.chat_template
    if not isinstance(template, str) or "generation" not in template:
        raise ValueError(
            "the processor's chat template does not mark what the assistant says with {% "
            "generation %} ... {% endgeneration %}, so training cannot tell answers from prompts. "
            "Use the default template, or add the marks"
        )
    messages = [
        {"role": turn.role, "content": _join_texts(turn.texts, processor)} for turn in sample.turns
    ]
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
            "into the first question, or use a template that has a place for it"
        )
    ids, spans = encode_with_spans(processor.tokenizer, rendered[0])
    stretches = _learned_stretches(sample, cast(Any, generated[0]))
    num_images = ids.count(processor.image_token_id)
    if num_images != len(sample.images):
        raise ValueError(
            f"sample {sample.id!r}: {len(sample.images)} images, but its text became {num_images} "
            "image tokens. The chat template must write a turn's text as it stands, with "
            f"{processor.image_token} as one token"
        )
    return Tokenized(ids, _overlaps(spans, stretches).tolist(), num_images)


def _join_texts(texts: Sequence[str], processor: M3Processor) -> str:
    """The texts around the images as one, with the tokenizer's image token for each image."""
    tokens = _control_pattern(processor, len(processor.tokenizer))
    return processor.image_token.join(fence(text, tokens) for text in texts)


@functools.lru_cache(maxsize=8)
def _control_pattern(processor: M3Processor, num_tokens: int) -> re.Pattern[str]:
    """The pattern of control tokens, computed once.

    `num_tokens` of the tokenizer are part of the key, as some may be added later.
    """
    return control_tokens(processor)


def _writes_system(messages: Sequence[dict[str, str]], rendered: str) -> bool:
    """Tell whether the system prompt is in the text once more than in the turns.

    These may quote it. True without a system prompt.
    """
    system_prompt = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    return not system_prompt or rendered.count(system_prompt) > sum(
        message["content"].count(system_prompt) for message in messages[1:]
    )


def _learned_stretches(sample: Sample, generated: list[tuple[int, int]]) -> np.ndarray:
    """Learned answers among those that the template marks: characters [start, end), `[g, 2]`."""
    answers = [turn for turn in sample.turns if turn.role == "assistant"]
    if not all(turn.learned for turn in answers):
        if len(generated) != len(answers):
            raise TemplateRefusalError(
                f"sample {sample.id!r}: has answers of weight 0, and the chat template marks "
                f"{len(generated)} stretches of {len(answers)} answers, so it cannot be told which "
                "they are. Mark each answer once with {% generation %}"
            )
        pairs = zip(generated, answers, strict=True)
        generated = [stretch for stretch, turn in pairs if turn.learned]
    return np.asarray(generated, dtype=np.int64).reshape(-1, 2)


def _overlaps(spans: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """True for each token `[t, 2]` that shares a character with a stretch `[g, 2]`."""
    starts_before = spans[:, None, 0] < stretches[None, :, 1]
    ends_after = spans[:, None, 1] > stretches[None, :, 0]
    return np.asarray((starts_before & ends_after).any(axis=1))
