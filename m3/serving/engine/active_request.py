"""One answer of an accepted request on its way through the engine: what was asked, what was
written, whom to tell.

In: tokens, one at a time. Out, through `emit`: `Piece`s, then one `Finished` or one `Refused`.
"""

import time
from collections.abc import Callable

from m3.serving.engine.detokenizer import Writing
from m3.serving.engine.preparation import Draft, Prepared
from m3.serving.engine.requests import (
    End,
    Event,
    Finished,
    LogProbability,
    Piece,
    Reason,
    Refused,
    Request,
    TokenLogProbabilities,
    Usage,
)
from m3.serving.engine.sampling import Choice, TokenRanks
from m3.serving.engine.vocabulary import Vocabulary

Emit = Callable[[Event | Refused], None]
"""Is called on the engine's thread; must not block."""


class Job:
    """An answer of a request: the only one, or number `index` of several, whose first is `leader`.

    `cancelled` may be set from any thread: the client left, and with it all answers of its request.
    All else belongs to the engine's thread once it waits there. `group`: the answers that join the
    batch with this one, itself included; they share the prompt's row until then.
    """

    def __init__(
        self, request: Request, emit: Emit, seconds: float, leader: "Job | None" = None
    ) -> None:
        self.request, self._emit = request, emit
        self.leader, self.index = leader or self, 0
        self.group = [self]
        if leader is not None:
            self.index = len(leader.group)
            leader.group.append(self)
        self.bytes = sum(len(visual.content) for visual in request.visuals) if leader is None else 0
        self.accepted = time.monotonic()
        self.deadline = self.accepted + seconds
        self.ended = False
        self.is_ready = False
        self.draft: Draft | None = None
        """Of a request whose budgets the model's router chooses, as it was before the choice."""
        self._first_token = self.accepted
        self._has_left = False
        self._log_probabilities: list[TokenLogProbabilities] = []
        self._told = 0  # of those

    @property
    def cancelled(self) -> bool:
        return self.leader._has_left

    @cancelled.setter
    def cancelled(self, has_left: bool) -> None:
        self.leader._has_left = has_left

    def begin(self, prepared: Prepared, vocabulary: Vocabulary) -> None:
        """Before it waits for its place in the batch."""
        self.prepared, self._vocabulary, self.is_ready = prepared, vocabulary, True
        guide = prepared.guides[self.index] if prepared.guides else None
        self.choice = Choice.make(self.request, self.index, guide)
        goes_on = self.request.ending == "continued" or self.request.prompt is not None
        self.writing = Writing(vocabulary.tokenizer, self.request.stop, goes_on)

    @property
    def length(self) -> int:
        """Tokens of its row in the end, prompt and answer."""
        return len(self.prepared.ids) + self.prepared.new_tokens

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def take(
        self, token: int, stops: frozenset[int], ranks: TokenRanks | None = None
    ) -> End | None:
        """The next token; says why it was the last one, if it was."""
        if not self.writing.tokens:
            self._first_token = time.monotonic()
        guide = self.choice.guide
        if guide is not None:
            guide.take(token)
            if guide.failure:
                return "grammar"
        if token in stops:
            self.writing.tokens.append(token)
            return "stop"
        if ranks is not None:
            self._log_probabilities.append(self._read_ranks(ranks))
        self._tell(self.writing.add(token))
        if self.writing.stopped or (guide is not None and guide.is_complete):
            return "stop"
        if self.cancelled:
            return "cancelled"
        if len(self.writing.tokens) >= self.prepared.new_tokens:
            return "length"
        return "time" if self.is_late else None

    def _read_ranks(self, ranks: TokenRanks) -> TokenLogProbabilities:
        def by_bytes(token: int, value: float) -> LogProbability:
            return LogProbability(self._vocabulary.token_bytes(token), value)

        return TokenLogProbabilities(
            by_bytes(*ranks.written), tuple(by_bytes(*rank) for rank in ranks.likeliest)
        )

    def _tell(self, piece: str, is_last: bool = False) -> None:
        """Tokens are told with the text that they end in, or with the last of it."""
        told_from = self._told
        if piece or (is_last and told_from < len(self._log_probabilities)):
            self._told = len(self._log_probabilities)
            self._emit(Piece(piece, self.index, tuple(self._log_probabilities[told_from:])))

    def finish(self, reason: Reason) -> Finished:
        """Tells the rest."""
        self._tell(self.writing.finish(), is_last=True)
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
            self.index,
            tuple(self._log_probabilities),
        )
        self.ended = True
        self._emit(finished)
        return finished

    def refuse(self, refused: Refused) -> None:
        self.ended = True
        self._emit(refused)
