"""Tokens to text while they come: each piece as soon as it is sure, and the end where a stop text
begins.

In: a token at a time. Out: pieces; put together they are the answer as one decoding of all tokens
would give it, without white space around it (one that goes on with a text keeps what stands in
front), up to the first stop text. One that holds a token which decoding leaves out stops by its ids
too. The work of a token does not grow with the answer.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from m3.inference.generation import stop_sequences

UNFINISHED = "\ufffd"
"""Character that a decoder writes for the first bytes of a character of several, and for bytes
that are no character.
"""
LONGEST_CHARACTER = 4
"""Bytes of a character, and so tokens of one: what is undecodable before the last four is sure."""
MOST_UNSURE = 32
"""Tokens without a sure end after which one is looked for among the last."""


class Writing:
    """One answer.

    `goes_on`: with a text that was there before, so that white space in front belongs to it.
    `tokens`: those written so far; `text`: what was given out; `stopped`: a stop text came.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], goes_on: bool = False
    ) -> None:
        self._goes_on = goes_on
        self._tokenizer, self._stop = tokenizer, [stop_text for stop_text in stop if stop_text]
        self._stop_sequences = stop_sequences(tokenizer, self._stop)
        # decoded anew with each token; what stands before `_end` was already taken
        self._begin = self._end = 0
        self._held = ""  # sure, but perhaps white space at the end, or the beginning of a stop text
        self._tidying = Tidying(tokenizer) if _tidies(tokenizer) else None
        self._waiting: list[int] = []  # perhaps the beginning of a stop sequence
        self._read: list[int] = []  # all tokens but those
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The piece that `token` makes sure; often none."""
        self.tokens.append(token)
        self._waiting.append(token)
        piece = ""
        while self._waiting and not self.stopped:
            if self._waiting in self._stop_sequences:
                self._waiting = []
                piece += self.finish()
                self.stopped = True
            elif any(ids[: len(self._waiting)] == self._waiting for ids in self._stop_sequences):
                break
            else:
                piece += self._take(self._waiting.pop(0))
        return piece

    def _take(self, token: int) -> str:
        self._read.append(token)
        known_text, new_text = self._decode(self._begin, self._end), self._decode(self._begin, None)
        read_end = len(self._read)
        if new_text.endswith(UNFINISHED):
            if read_end - self._end < MOST_UNSURE:
                return ""
            read_end = self._sure_end(new_text)
            new_text = self._decode(self._begin, read_end)
        elif len(new_text) <= len(known_text):
            if read_end - self._end >= MOST_UNSURE:  # tokens that are left out, one after the other
                self._begin, self._end = self._end, read_end
            return ""
        self._begin, self._end = self._end, read_end
        return self._give(new_text[len(known_text) :], is_last=False)

    def _sure_end(self, text: str) -> int:
        """The last place among the tokens that divides no character: what is decoded before and
        behind it makes up `text`.

        One of four places does, since no character has more bytes.
        """
        last_token = len(self._read)
        for token_end in range(last_token - 1, last_token - 1 - LONGEST_CHARACTER, -1):
            if self._decode(self._begin, token_end) + self._decode(token_end, None) == text:
                return token_end
        return last_token

    def finish(self) -> str:
        """The last piece."""
        waiting, self._waiting = self._waiting, []
        piece = "".join(self._take(token) for token in waiting if not self.stopped)
        if self.stopped:
            return piece
        known_text, new_text = self._decode(self._begin, self._end), self._decode(self._begin, None)
        return piece + self._give(new_text[len(known_text) :], is_last=True)

    def _decode(self, begin: int, end: int | None) -> str:
        decoded_text = self._tokenizer.decode(
            self._read[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(decoded_text, str)  # of one list of ids
        return decoded_text

    def _give(self, text: str, is_last: bool) -> str:
        held_text = self._held + (
            text if self._tidying is None else self._tidying.add(text, is_last)
        )
        stop_positions = [
            stop_position
            for stop_position in (held_text.find(stop) for stop in self._stop)
            if stop_position >= 0
        ]
        if stop_positions:
            self.stopped, is_last, held_text = True, True, held_text[: min(stop_positions)]
        kept_length = (
            0 if is_last else max((_overlap(held_text, stop) for stop in self._stop), default=0)
        )
        sure = held_text[: len(held_text) - kept_length].rstrip()
        self._held = held_text[len(sure) :]
        piece = sure if self.text or self._goes_on else sure.lstrip()
        self.text += piece
        return piece


class Tidying:
    """The spaces that a tokenizer takes away before punctuation (`clean_up_tokenization_spaces`),
    while the text comes.

    Each pattern of it begins at a space; none goes on over the space behind a word, but for the
    words of `JOINED`.
    """

    JOINED = ("", "'", "n")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._held, self._seen = tokenizer, "", 0

    def add(self, text: str, is_last: bool) -> str:
        """Text that is sure so far."""
        self._held += text
        cut = len(self._held) if is_last else self._cut()
        sure, self._held = self._held[:cut], self._held[cut:]
        self._seen = max(self._seen - cut, 0)
        return self._tokenizer.clean_up_tokenization(sure)

    def _cut(self) -> int:
        """The last place that parts the text into two that can be tidied apart; no space is
        looked at twice.
        """
        cut = 0
        while (space := self._held.find(" ", self._seen)) >= 0:
            last_word = self._held[self._held.rfind(" ", 0, space) + 1 : space]
            cut = cut if last_word in self.JOINED else space
            self._seen = space + 1
        return cut


def _tidies(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether decoding takes spaces away; transformers does not for all that are set to."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    ids = tokenizer("a . ? ! , ' b n't 'm 's 've 're", add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids) != tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of `text` that may be the beginning of `stop`."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
