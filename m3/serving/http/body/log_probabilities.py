"""Log-probabilities of an answer's tokens as OpenAI's chat has them.

In: those of the engine, by bytes. Out: `logprobs` of a choice, whole or of a chunk.
"""

from collections.abc import Sequence

from pydantic import BaseModel

from m3.serving.engine.requests import LogProbability, TokenLogProbabilities

LOWEST = -9999.0
"""In place of minus infinity, which JSON cannot hold; OpenAI's number for it."""


class TokenLogProbability(BaseModel):
    """`token`: its bytes as text; those of a part of a character show as U+FFFD."""

    token: str
    bytes: list[int]
    logprob: float


class WrittenLogProbability(TokenLogProbability):
    """A token of the answer."""

    top_logprobs: list[TokenLogProbability]


class ChoiceLogProbabilities(BaseModel):
    """`logprobs` of a choice."""

    content: list[WrittenLogProbability]
    refusal: None = None


def choice_log_probabilities(tokens: Sequence[TokenLogProbabilities]) -> ChoiceLogProbabilities:
    """The fields of these tokens; the likeliest first where several are told."""
    return ChoiceLogProbabilities(content=[_written_token(token) for token in tokens])


def _written_token(token: TokenLogProbabilities) -> WrittenLogProbability:
    likeliest = [_told_token(log_probability) for log_probability in token.likeliest]
    return WrittenLogProbability(**dict(_told_token(token.written)), top_logprobs=likeliest)


def _told_token(log_probability: LogProbability) -> TokenLogProbability:
    return TokenLogProbability(
        token=log_probability.token.decode(errors="replace"),
        bytes=list(log_probability.token),
        logprob=max(log_probability.value, LOWEST),
    )
