"""The tokens of a model as bytes, which grammars and log-probabilities are told in.

In: a tokenizer of transformers. Out: the bytes of each token, and llguidance's view of them all, made
when the first request asks for it (0.01 s for 600 tokens, a second for 150,000) and kept.
"""

import threading
from collections.abc import Set

from llguidance import LLTokenizer, TokenizerWrapper
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


class Vocabulary:
    """`size`: tokens that the model tells of, which may be more than its tokenizer has; `ends`: those
    that end an answer. May be asked from any thread.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Set[int]) -> None:
        self.tokenizer, self.size, self._ends = tokenizer, size, sorted(ends)
        self._lock = threading.Lock()
        self._byte_tokenizer: LLTokenizer | None = None
        self._single_bytes: frozenset[int] | None = None

    @property
    def byte_tokenizer(self) -> LLTokenizer:
        """The tokens as llguidance knows them.

        Raises:
            ValueError: a tokenizer that it cannot read.
        """
        with self._lock:
            if self._byte_tokenizer is None:
                if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
                    raise ValueError("the model's tokenizer is none of the tokenizers library")
                self._byte_tokenizer = self._read(self.tokenizer)
            return self._byte_tokenizer

    def _read(self, tokenizer: PreTrainedTokenizerFast) -> LLTokenizer:
        ends = self._ends or None
        try:
            return from_tokenizer(tokenizer, n_vocab=self.size, eos_token=ends)
        except ValueError:  # neither bytes of GPT-2 nor <0x0A> of sentencepiece
            byte_tokens = TokenizerWrapper(SpelledTokenizer(tokenizer))
            return LLTokenizer(byte_tokens, n_vocab=self.size, eos_token=ends)

    def token_bytes(self, token: int) -> bytes:
        """Bytes that a token writes; of a control token those of its name."""
        try:
            return self.byte_tokenizer.decode_bytes([token])
        except ValueError:
            decoded_text = self.tokenizer.decode([token])
            assert isinstance(decoded_text, str)  # of one list of ids
            return decoded_text.encode()

    def missing_bytes(self, wanted_bytes: bytes) -> bytes:
        """Those that no token writes alone, so that a text with them may have no way to be written.

        Raises:
            ValueError: a tokenizer that llguidance cannot read.
        """
        byte_tokenizer = self.byte_tokenizer
        if self._single_bytes is None:
            token_texts = (byte_tokenizer.decode_bytes([token]) for token in range(self.size))
            self._single_bytes = frozenset(text[0] for text in token_texts if len(text) == 1)
        return bytes(sorted(set(wanted_bytes) - self._single_bytes))


class SpelledTokenizer:
    """A tokenizer whose tokens are texts, in the form that llguidance asks for.

    A token is what it adds to the text of a token before it. `tokens`: of each id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        added_ids = sorted(tokenizer.added_tokens_decoder)
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = added_ids
        anchor = next(token for token in range(len(tokenizer)) if token not in added_ids)
        start = len(self._text([anchor]))
        self.tokens = [self._text([anchor, token])[start:] for token in range(len(tokenizer))]
        plain_ids = sorted(set(range(len(tokenizer))) - set(added_ids), reverse=True)
        self._ids = {self.tokens[token]: token for token in plain_ids}
        self._longest = max(map(len, self._ids))

    def _text(self, ids: list[int]) -> bytes:
        decoded_text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(decoded_text, str)  # of one list of ids
        return decoded_text.encode()

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text that an answer must go on with: the longest token at each place."""
        ids: list[int] = []
        position = 0
        while position < len(text):
            lengths = range(min(self._longest, len(text) - position), 0, -1)
            pieces = (text[position : position + length] for length in lengths)
            token = next((self._ids[piece] for piece in pieces if piece in self._ids), None)
            if token is not None:
                ids.append(token)
            position += 1 if token is None else len(self.tokens[token])
        return ids
