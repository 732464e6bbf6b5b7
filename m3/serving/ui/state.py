"""What the page knows of a conversation or a comparison, and what it asks the engine.

In: the file that is shown, questions and scales. Out: the engine's `Request`s, and `facts`: all of
it as plain data, for JSON. Nothing here knows Gradio.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from m3.inference import Generation
from m3.processing.video import Sampling
from m3.serving.engine.requests import Finished, Refused, Request, Turn, Visual
from m3.serving.settings import Limits

MOST_SCALES = 16
"""Notches of the scale slider; a model that reaches more offers those that it was trained at."""

CUT = {"length": "tokens", "time": "time"}
"""Why an answer ended too early -> the limit."""


@dataclass(frozen=True)
class Shown:
    """The file of a still or a video, on the server's disk; `sampling`: of a video."""

    kind: Literal["image", "video"]
    path: str
    sampling: Sampling = field(default_factory=Sampling)

    def read(self, limits: Limits) -> Visual:
        """Its size is looked at first.

        Raises:
            Refused: the file is too large, or no longer there.
        """
        file = Path(self.path)
        limit = limits.image_bytes if self.kind == "image" else limits.video_bytes
        try:
            size = file.stat().st_size
            if size > limit:
                raise Refused(
                    f"the {self.kind} has {size:,} bytes, more than this server's limit "
                    f"of {limit:,}"
                )
            return Visual(self.kind, file.read_bytes(), sampling=self.sampling)
        except OSError:  # gone, or a folder
            raise Refused(f"the {self.kind} is no longer on the server: choose it again") from None


@dataclass(frozen=True)
class Reading:
    """One answer, as far as it has come. Seconds are counted from the request's acceptance."""

    scale: int
    question: str
    text: str = ""
    is_trained: bool = True
    visual_tokens: int | None = None
    first_token_seconds: float | None = None
    seconds: float | None = None
    reason: str | None = None
    """Why it ended; None while it has not."""
    error: str | None = None

    def add(self, piece: str) -> "Reading":
        return replace(self, text=self.text + piece)

    def end(self, finished: Finished) -> "Reading":
        return replace(
            self,
            text=finished.text,
            visual_tokens=finished.usage.visual_tokens,
            first_token_seconds=round(finished.first_token_seconds, 4),
            seconds=round(finished.seconds, 4),
            reason=finished.reason,
        )

    def fail(self, error: str) -> "Reading":
        return replace(self, error=error, reason="refused")


@dataclass(frozen=True)
class Talk:
    """Answers about one still or video, or about none.

    `look_seconds`: of a comparison, the first look.
    """

    shown: Shown | None = None
    readings: tuple[Reading, ...] = ()
    look_seconds: float | None = None


def ladder(trained: Sequence[int], reachable: Sequence[int]) -> tuple[int, ...]:
    """The notches of the slider, ascending."""
    return tuple(reachable) if len(reachable) <= MOST_SCALES else tuple(trained)


def request(
    visual: Visual | None, earlier: Sequence[Reading], asked: Reading, generation: Generation
) -> Request:
    """The next question, with the picture in front of the first one."""
    turns = []
    for reading in (*earlier, asked):
        parts = (
            (visual, reading.question) if visual is not None and not turns else (reading.question,)
        )
        turns += [Turn("user", parts), Turn("assistant", (reading.text,))]
    return Request(tuple(turns[:-1]), asked.scale, generation)


def facts(talk: Talk, model: str, created: str) -> dict[str, Any]:
    """All that there is to know, without the picture itself: the digest of its file stands for
    it.
    """
    shown = None
    if talk.shown is not None:
        file = Path(talk.shown.path)
        content = file.read_bytes() if file.is_file() else None
        shown = {
            "kind": talk.shown.kind,
            "file": file.name,
            "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
        }
        if talk.shown.kind == "video":
            shown["num_frames"] = talk.shown.sampling.num_frames
    found = {"model": model, "created": created, "shown": shown}
    if talk.look_seconds is not None:
        found["look_seconds"] = talk.look_seconds
    return found | {"answers": [_renamed(asdict(reading)) for reading in talk.readings]}


def _renamed(reading: dict[str, Any]) -> dict[str, Any]:
    return {"matryoshka_vis_token_scale": reading.pop("scale"), **reading}


def figures(reading: Reading) -> list[str]:
    """Tokens and times; what is not known yet is left out."""
    if reading.error is not None:
        return [f"refused: {reading.error}"]
    parts = []
    if reading.visual_tokens is not None:
        parts.append(f"{reading.visual_tokens} visual token{'s' * (reading.visual_tokens != 1)}")
    if reading.first_token_seconds is not None:
        parts.append(f"first token {duration(reading.first_token_seconds)}")
    if reading.seconds is not None:
        parts.append(f"total {duration(reading.seconds)}")
    if reading.reason in CUT:
        parts.append(f"cut at the limit of {CUT[reading.reason]}")
    return parts


def caption(reading: Reading) -> str:
    """In one line; without a picture there is no scale."""
    scale = [] if reading.visual_tokens == 0 else [heading(reading.scale, reading.is_trained)]
    return " · ".join([*scale, *figures(reading)])


def heading(scale: int, is_trained: bool = True) -> str:
    return f"Scale {scale}" + ("" if is_trained else " (not trained)")


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
