"""One accepted request on its way through the engine: what was asked, what was written, whom to
tell.

In: tokens, one at a time. Out, through `emit`: `Piece`s, then one `Finished` or one `Refused`.
"""

import time
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from m3.serving.engine.detokenizer import Writing
from m3.serving.engine.preparation import Draft, Prepared
from m3.serving.engine.requests import Event, Finished, Piece, Reason, Refused, Request, Usage
from m3.serving.engine.sampling import Choice

Emit = Callable[[Event | Refused], None]
"""Is called on the engine's thread; must not block."""


class Job:
    """`cancelled` may be set from any thread: the client left.

    All else belongs to the engine's thread once it waits there.
    """

    def __init__(self, request: Request, emit: Emit, seconds: float) -> None:
        self.request, self._emit = request, emit
        self.bytes = sum(len(visual.content) for visual in request.visuals)
        self.accepted = time.monotonic()
        self.deadline = self.accepted + seconds
        self.cancelled = False
        self.ended = False
        self.is_ready = False
        self.draft: Draft | None = None
        """Of a request whose budgets the model's router chooses, as it was before the choice."""
        self._first_token = self.accepted

    def begin(self, prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> None:
        """Before it waits for its place in the batch."""
        self.prepared, self.is_ready = prepared, True
        self.choice = Choice.make(self.request.generation, self.request.seed)
        goes_on = self.request.ending == "continued"
        self.writing = Writing(tokenizer, self.request.stop, goes_on)

    @property
    def length(self) -> int:
        """Tokens of its row in the end, prompt and answer."""
        return len(self.prepared.ids) + self.prepared.new_tokens

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def take(self, token: int, stops: frozenset[int]) -> Reason | None:
        """The next token; says why it was the last one, if it was."""
        if not self.writing.tokens:
            self._first_token = time.monotonic()
        if token in stops:
            self.writing.tokens.append(token)
            return "stop"
        piece = self.writing.add(token)
        if piece:
            self._emit(Piece(piece))
        if self.writing.stopped:
            return "stop"
        if self.cancelled:
            return "cancelled"
        if len(self.writing.tokens) >= self.prepared.new_tokens:
            return "length"
        return "time" if self.is_late else None

    def finish(self, reason: Reason) -> Finished:
        """Tells the rest."""
        piece = self.writing.finish()
        if piece:
            self._emit(Piece(piece))
        prepared = self.prepared
        usage = Usage(
            len(prepared.ids),
            tuple(prepared.counts),
            tuple(budget.setting for budget in prepared.budgets),
            len(self.writing.tokens),
        )
        finished = Finished(
            self.writing.text,
            reason,
            usage,
            self._first_token - self.accepted,
            time.monotonic() - self.accepted,
        )
        self.ended = True
        self._emit(finished)
        return finished

    def refuse(self, refused: Refused) -> None:
        self.ended = True
        self._emit(refused)
