"""Requests and replies of the engine; m3/serving/http/messages.py makes them of OpenAI's.

In: `Request`. Out: any number of `Piece`s, then one `Finished`, for each of its answers; or
`Refused` is raised.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from m3.inference import Generation
from m3.processing.scale_policy import ScaleSetting
from m3.processing.video import Sampling

Role = Literal["system", "user", "assistant"]
Reason = Literal["stop", "length", "time", "cancelled"]
Detail = Literal["low", "high"]
"""A budget without a number: the cheapest that shows something, or the largest trained."""
Ending = Literal["answer", "continued", "as_it_is"]
"""The prompt's: at the beginning of an answer; in the last message, which the answer goes on with;
or behind the last message.
"""
End = Reason | Literal["memory", "grammar"]
"""`memory`: there is no answer, as the device had no room for it; `grammar`: none either, as its
form became too much to follow.
"""
FormatKind = Literal["json", "regex", "choice"]


class Refused(ValueError):
    """A request that will not be answered.

    `status`: HTTP's; `code`: one word for programs; the text is for people.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Busy(Refused):
    """The house is full (429), or closing (503)."""

    def __init__(self, message: str, retry_after_seconds: int, status: int = 429) -> None:
        super().__init__(message, status, code="overloaded")
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Visual:
    """A still or a video, as the bytes of its file."""

    kind: Literal["image", "video"]
    content: bytes = field(repr=False)
    scale: ScaleSetting | None = None
    """None: the request's."""
    sampling: Sampling = field(default_factory=Sampling)
    field_path: str = ""
    """In the client's request, for errors."""
    detail: Detail | None = None
    """Where neither this nor the request has a scale."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides the pictures; budgets say how they are seen."""
        how = "" if self.kind == "image" else repr(self.sampling)
        return hashlib.sha256(f"{self.kind} {how} ".encode() + self.content).hexdigest()


@dataclass(frozen=True)
class Turn:
    """Text and visuals in reading order."""

    role: Role
    parts: tuple[str | Visual, ...]


@dataclass(frozen=True)
class AnswerFormat:
    """Form that an answer must have.

    `definition`: a JSON schema as JSON; a regular expression; a JSON list of texts. `field_path`: where
    the client's body says it, for errors.
    """

    kind: FormatKind
    definition: str = field(repr=False)
    field_path: str


@dataclass(frozen=True)
class Request:
    """One answer asked for, or several to the same prompt."""

    turns: tuple[Turn, ...]
    scale: ScaleSetting | None = None
    """Visual tokens per picture, 36 or "36@48", a schedule over frames, or "auto"; None: the largest
    trained.
    """
    generation: Generation = field(default_factory=Generation)
    seed: int | None = None
    """Of the random numbers, where the answer is sampled."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""
    scale_place: str = "matryoshka_vis_token_scale"
    """Where the client's request has its scale, for errors."""
    ending: Ending = "answer"
    prompt: str | None = None
    """A text to be continued as it stands, in place of turns."""
    answer_format: AnswerFormat | None = None
    choice_count: int = 1
    """Answers; the random numbers of each begin at a seed of its own."""
    top_count: int | None = None
    """Likeliest tokens that are told beside each token of the answer, with log-probabilities; None:
    nothing is told.
    """
    field_path: str = "messages"
    """Where the client's body has the prompt, for errors."""

    @property
    def visuals(self) -> list[Visual]:
        """Stills and videos of all turns, in reading order."""
        return [
            visual_part
            for turn in self.turns
            for visual_part in turn.parts
            if isinstance(visual_part, Visual)
        ]


@dataclass(frozen=True)
class Usage:
    """Tokens.

    `visual_tokens_of`: of each still or frame, in reading order; their sum is part of
    `prompt_tokens`. `scales_of`: the budget that each was read at, 36 or "36@48".
    """

    prompt_tokens: int
    visual_tokens_of: tuple[int, ...]
    scales_of: tuple[int | str, ...]
    new_tokens: int

    @property
    def visual_tokens(self) -> int:
        return sum(self.visual_tokens_of)


@dataclass(frozen=True)
class LogProbability:
    """Natural logarithm of a token's probability in the model's own distribution: before
    temperature, nucleus and the form of the answer.
    """

    token: bytes
    value: float


@dataclass(frozen=True)
class TokenLogProbabilities:
    """Those of a token of the answer, and of the likeliest in its place."""

    written: LogProbability
    likeliest: tuple[LogProbability, ...]


@dataclass(frozen=True)
class Piece:
    """The next part of an answer. `log_probabilities`: of its tokens, where they were asked for.

    `index`: of the answer among those of its request, here and below.
    """

    text: str
    index: int = 0
    log_probabilities: tuple[TokenLogProbabilities, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The whole answer. `first_token_seconds`, `seconds`: since the request was accepted."""

    text: str
    reason: Reason
    usage: Usage
    first_token_seconds: float
    seconds: float
    index: int = 0
    log_probabilities: tuple[TokenLogProbabilities, ...] = ()


Event = Piece | Finished
