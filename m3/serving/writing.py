"""Tokens to text while they come: each piece as soon as it is sure, and the end where a stop text begins.

In: a token at a time. Out: pieces; put together they are the answer as one decoding of all tokens would give it, without white
space around it, up to the first stop text.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a character of several."""


class Writing:
    """One answer. `tokens`: those written so far; `text`: what was given out; `stopped`: a stop text came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._begin = self._end = 0  # decoded anew with each token; what stands before `_end` was already taken
        self._held = ""  # sure, but perhaps white space at the end, or the beginning of a stop text
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The piece that `token` makes sure; often none."""
        self.tokens.append(token)
        known, new = self._decode(self._begin, self._end), self._decode(self._begin, None)
        if len(new) <= len(known) or new.endswith(UNFINISHED):
            return ""
        self._begin, self._end = self._end, len(self.tokens)
        return self._give(new[len(known) :], is_last=False)

    def finish(self) -> str:
        """The last piece."""
        if self.stopped:
            return ""
        known, new = self._decode(self._begin, self._end), self._decode(self._begin, None)
        return self._give(new[len(known) :], is_last=True)

    def _decode(self, begin: int, end: int | None) -> str:
        text = self._tokenizer.decode(self.tokens[begin:end], skip_special_tokens=True)
        assert isinstance(text, str)  # of one list of ids
        return text

    def _give(self, text: str, is_last: bool) -> str:
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, is_last, held = True, True, held[: min(found)]
        kept = 0 if is_last else max((_overlap(held, stop) for stop in self._stop), default=0)
        sure = held[: len(held) - kept].rstrip()
        self._held = held[len(sure) :]
        piece = sure if self.text else sure.lstrip()
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
