"""Answers of a form that the client says: JSON of a schema, a regular expression, one of some texts.

In: an `AnswerFormat` of a request. Out: a `Guide` for each answer, which says of every token whether
it may come next.

llguidance does the work (MIT, https://github.com/guidance-ai/llguidance): it reads the schema once,
on a thread beside the model's, and finds the tokens of a step by walking the vocabulary with an
Earley parser, within limits that no schema can pass.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from m3.serving.engine.json_schema import closed_schema
from m3.serving.engine.requests import AnswerFormat, FormatKind, Refused
from m3.serving.engine.vocabulary import Vocabulary

MAX_CHARACTERS = 100_000
"""Of a schema, an expression or all choices."""
KEPT = 64
"""Grammars that are kept for the next request."""
LONGEST_REASON = 300
"""Characters of llguidance's own words in an error."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=20_000,
    step_max_items=20_000,
    max_lexer_states=10_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""A fifth of llguidance's own and less: a step of a hostile grammar ends after some 0.1 s, and the
states of one answer take 20 MB at most.
"""
WHITE_SPACE = r"( |\n {0,8})"
"""Between the parts of JSON: as models write it, but no model can fill its answer with it."""
JSON_BYTES = bytes(range(ord(" "), ord("~") + 1))


class Guide:
    """One answer on its way through its grammar; belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> Bool[Tensor, " size"]:
        """Tokens that may come next; `size`: of the vocabulary. All, where the grammar has failed."""
        mask_bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = torch.from_numpy(np.unpackbits(mask_bits, bitorder="little")[:size].astype(bool))
        assert len(mask) == size
        return mask if bool(mask.any()) else torch.ones_like(mask)

    def take(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """Nothing can follow any more."""
        return self._matcher.is_stopped() and not self.failure

    @property
    def failure(self) -> str:
        """Why the grammar cannot be followed any further; empty while it can."""
        return _reason(self._matcher.get_error())


class Grammars:
    """Grammars by their definitions, the latest of them kept. May be asked from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._kept: OrderedDict[AnswerFormat, LLMatcher] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def guides(self, answer_format: AnswerFormat, count: int) -> tuple[Guide, ...]:
        """A guide for each of `count` answers.

        Raises:
            Refused: a form that cannot be followed; the message says where and why.
        """
        with self._lock:
            matcher = self._kept.get(answer_format)
        if matcher is None:
            try:
                matcher = self._compile(answer_format)
            except ValueError as error:
                field_path = answer_format.field_path
                reason = " ".join(str(error).split())[:LONGEST_REASON]
                raise Refused(f"{field_path}: {reason}", param=field_path) from error
        with self._lock:
            self._kept[answer_format] = matcher
            self._kept.move_to_end(answer_format)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return tuple(Guide(matcher.deep_copy()) for _ in range(count))

    def _compile(self, answer_format: AnswerFormat) -> LLMatcher:
        """A matcher before its first token, whose first step is known to work."""
        definition = answer_format.definition
        if len(definition) > MAX_CHARACTERS:
            raise ValueError(
                f"it has {len(definition):,} characters, more than this server's limit of "
                f"{MAX_CHARACTERS:,}"
            )
        self._check_vocabulary(answer_format)
        grammar = _grammar(answer_format.kind, definition)
        matcher = LLMatcher(self._vocabulary.byte_tokenizer, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(f"this server cannot follow it: {_reason(matcher.get_error())}")
        return matcher

    def _check_vocabulary(self, answer_format: AnswerFormat) -> None:
        """Refuses what the model has no tokens for."""
        wanted_bytes = {"json": JSON_BYTES, "regex": b""}.get(answer_format.kind)
        if wanted_bytes is None:
            wanted_bytes = "".join(json.loads(answer_format.definition)).encode()
        try:
            missing_bytes = self._vocabulary.missing_bytes(wanted_bytes)
        except ValueError as error:
            raise ValueError(f"this model cannot be held to a form: {error}") from error
        if missing_bytes:
            raise ValueError(
                f"this model cannot write it: its tokenizer has no token for {missing_bytes[:40]!r}"
            )


def _grammar(kind: FormatKind, definition: str) -> str:
    if kind == "json":
        # what is not understood is refused, not left out, whatever the schema says of it
        return LLMatcher.grammar_from_json_schema(
            json.dumps(closed_schema(json.loads(definition))),
            overrides={"whitespace_pattern": WHITE_SPACE, "lenient": False, "coerce_one_of": False},
        )
    if kind == "regex":
        return LLMatcher.grammar_from_regex(definition)
    choices: Sequence[str] = json.loads(definition)
    return LLMatcher.grammar_from_regex("|".join(map(re.escape, choices)))


def _reason(error: str) -> str:
    """llguidance's words without the state that it adds to them."""
    words = error.partition("<non-verbose/>")[0].partition("<state>")[0].split()
    return " ".join(words)[:LONGEST_REASON]
