"""What happens when the page's buttons are pressed: questions go to the engine, and answers come
back while they are made.

In: what stands in the page. Out: tuples for its outputs, piece by piece (`Answered`, `Compared`). A
`Refused` of the engine becomes the page's message, and what was typed stays where it is. Nothing is
read or decoded on the event loop.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from m3.inference import Generation
from m3.processing import load_image
from m3.processing.token_grid import Line, canvas, token_lines
from m3.processing.video import Sampling, load_video
from m3.serving.engine.engine import Engine
from m3.serving.engine.requests import Finished, Piece, Request, Visual
from m3.serving.settings import Settings
from m3.serving.ui import html as ui_html
from m3.serving.ui.state import Reading, Shown, Talk, caption, facts, figures, heading, request

UPDATE_SECONDS = 0.05
"""Pieces that come faster are shown together."""
Update = str | dict[str, Any]
"""A component's new value, or `gr.skip()`: it stays as it is."""
Answered = tuple[Update, Update, Update, "Talk | dict[str, Any]"]
"""HTML of the conversation; the question; the message; the talk."""
Compared = tuple[Update, Update, Update, "Comparison | dict[str, Any]"]
"""HTML of the cards; the style that has the picture; the message; the comparison."""


@dataclass(frozen=True)
class Choices:
    """What the page says besides question and scale."""

    shown: Shown | None
    generation: Generation

    @classmethod
    def read(
        cls, kind: str, picture: Any, clip: Any, frames: Any, new_tokens: Any, temperature: Any
    ) -> "Choices":
        """From what the browser sent.

        The gate has checked that files are those that were uploaded.
        """
        most = 2**31
        generation = Generation(
            int(_number("tokens", new_tokens, 1, most)), _number("temperature", temperature, 0, 2)
        )
        if kind == "video":
            sampling = Sampling(num_frames=int(_number("frames", frames, 1, most)))
            return cls(None if clip is None else Shown("video", _path(clip), sampling), generation)
        return cls(None if picture is None else Shown("image", _path(picture)), generation)


def _number(name: str, given: Any, low: float | int, high: float | int) -> float:
    if not isinstance(given, int | float) or not low <= given <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {given!r}"[:200])
    return float(given)


def _path(file: Any) -> str:
    if not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise ValueError("expected an uploaded file: choose it again")
    return file["path"]


@dataclass(frozen=True)
class Look:
    """A picture as cards show it: `address` of a small copy, width / height, the grid's lines at
    each scale.
    """

    address: str = ""
    aspect: float = 1.0
    lines: dict[int, list[Line]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One question at every scale."""

    talk: Talk = field(default_factory=Talk)
    look: Look = field(default_factory=Look)

    def html(self, is_busy: bool = False) -> str:
        return ui_html.comparison(
            self.talk.readings, self.look.lines, self.look.aspect, self.talk.look_seconds, is_busy
        )


class Desk:
    """Serves all who have the page open; what belongs to one of them is in its `Talk` and
    `Comparison`.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._limits = engine, settings.limits
        self._processor, self.name = engine.processor, settings.name or "m3"

    # ------------------------------------------------------------------ asking
    async def ask(
        self, question: str, scale: str, talk: Talk, *choices: Any
    ) -> AsyncGenerator[Answered]:
        """Goes on with the conversation; another picture begins a new one."""
        is_cleared = False
        try:
            asked = self._reading(question, int(str(scale)[:20]))
            chosen = Choices.read(*choices)
            shown = chosen.shown
            earlier = talk.readings if talk.shown == shown else ()
            visual = await self._content(shown)
            async with aclosing(
                self._read(request(visual, earlier, asked, chosen.generation), asked)
            ) as readings:
                async for reading in readings:
                    now = (*earlier, reading)
                    # once, so that the next question can be typed
                    clears = not is_cleared and reading is not asked
                    is_cleared = is_cleared or clears
                    html = ui_html.conversation(now, is_busy=reading.reason is None)
                    yield html, "" if clears else gr.skip(), "", Talk(shown, now)
        except ValueError as error:
            back = question if is_cleared else gr.skip()
            yield ui_html.conversation(talk.readings), back, ui_html.text(str(error)), talk

    async def compare(self, question: str, *choices: Any) -> AsyncGenerator[Compared]:
        """One scale after the other, so that their times can be compared; the picture is seen
        before the first of them.
        """
        try:
            chosen = Choices.read(*choices)
            shown = chosen.shown
            if shown is None:
                raise ValueError(
                    "Choose a picture or a video first: there is nothing to compare scales on."
                )
            scales = self._processor.trained_scales
            readings = [self._reading(question, scale) for scale in scales]
            visual = await self._content(shown)
            assert visual is not None  # as `shown` is not
            first = await self._first_look(visual, readings[0])
            look = await asyncio.to_thread(self._look, visual)
            comparison = Comparison(Talk(shown, tuple(readings), first), look)
            yield comparison.html(True), ui_html.picture_style(look.address), "", comparison
            for n in range(len(scales)):
                asked = request(visual, (), readings[n], chosen.generation)
                async with aclosing(self._read_or_fail(asked, readings[n])) as coming:
                    async for reading in coming:
                        readings[n] = reading
                        comparison = Comparison(
                            replace(comparison.talk, readings=tuple(readings)), look
                        )
                        yield (
                            comparison.html(readings[-1].reason is None),
                            gr.skip(),
                            gr.skip(),
                            comparison,
                        )
        except ValueError as error:
            yield gr.skip(), gr.skip(), ui_html.text(str(error)), gr.skip()

    async def _first_look(self, visual: Visual, asked: Reading) -> float:
        """Seconds until the first word at the coarsest scale; from here on the engine has the
        features.
        """
        async with aclosing(
            self._engine.stream(request(visual, (), asked, Generation(1)))
        ) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return round(event.first_token_seconds, 4)
        raise AssertionError("a stream of the engine ends with Finished")

    async def _read_or_fail(self, asked: Request, reading: Reading) -> AsyncGenerator[Reading]:
        """A scale that is refused says so in its place; the others go on."""
        try:
            async with aclosing(self._read(asked, reading)) as readings:
                async for one in readings:
                    yield one
        except ValueError as error:
            yield reading.fail(str(error))

    async def _read(self, asked: Request, reading: Reading) -> AsyncGenerator[Reading]:
        """`reading` itself, then as it grows; the last one has a reason.

        Leaving early cancels the request.
        """
        yield reading
        told = 0.0
        async with aclosing(self._engine.stream(asked)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    reading = reading.add(event.text)
                    if time.monotonic() - told < UPDATE_SECONDS:
                        continue
                else:
                    reading = reading.end(event)
                yield reading
                told = time.monotonic()

    def _reading(self, question: str, scale: int) -> Reading:
        if not isinstance(question, str) or not question.strip():
            raise ValueError("Write a question first.")
        return Reading(scale, question, is_trained=scale in self._processor.trained_scales)

    async def _content(self, shown: Shown | None) -> Visual | None:
        return None if shown is None else await asyncio.to_thread(shown.read, self._limits)

    def _look(self, visual: Visual) -> Look:
        """Of a video, its first frame."""
        limits = self._limits
        if visual.kind == "video":
            sampling = visual.sampling
            video = load_video(
                visual.content,
                sampling,
                limits.pixels,
                limits.video_seconds,
                limits.frames,
                limits.video_pixels,
                limits.decode_seconds,
            )
            picture = video.frames[0]
        else:
            picture = load_image(visual.content, limits.pixels)
        seen = canvas(picture, self._processor)
        lines = {
            scale: token_lines(seen, self._processor, scale)
            for scale in self._processor.trained_scales
        }
        return Look(
            ui_html.picture_address(seen.picture), seen.picture.width / seen.picture.height, lines
        )

    # ------------------------------------------------------------------ afterwards
    def at_rest(self, talk: Talk, comparison: Comparison) -> tuple[str, str]:
        """Both pages of answers once nothing is written any more."""
        return ui_html.conversation(talk.readings), comparison.html()

    def new_talk(self) -> tuple[str, str, Talk]:
        return ui_html.conversation(()), "", Talk()

    def talk_facts(self, talk: Talk) -> dict[str, Any] | None:
        return self._file("conversation", talk, {"facts": facts(talk, self.name, _now())})

    def comparison_facts(self, comparison: Comparison) -> dict[str, Any] | None:
        return self._file(
            "comparison", comparison.talk, {"facts": facts(comparison.talk, self.name, _now())}
        )

    async def talk_picture(self, talk: Talk) -> dict[str, Any] | None:
        """The conversation under its picture, where that is still there."""
        address = ""
        if talk.readings and talk.shown is not None:
            try:
                visual = await self._content(talk.shown)
                assert visual is not None
                address = (await asyncio.to_thread(self._look, visual)).address
            except ValueError:
                address = ""  # the answers are still worth a picture
        items = [
            {"heading": one.question, "text": one.text, "caption": caption(one), "lines": None}
            for one in talk.readings
        ]
        return self._drawing("conversation", talk, items, address, columns=1)

    def comparison_picture(self, comparison: Comparison) -> dict[str, Any] | None:
        items = [
            {
                "heading": heading(one.scale, one.is_trained),
                "text": one.text,
                "caption": "\n".join(figures(one)),
                "lines": comparison.look.lines.get(one.scale, []),
            }
            for one in comparison.talk.readings
        ]
        return self._drawing(
            "comparison", comparison.talk, items, comparison.look.address, min(len(items), 5)
        )

    def _drawing(
        self, name: str, talk: Talk, items: Sequence[dict[str, Any]], address: str, columns: int
    ) -> dict[str, Any] | None:
        """What templates/ui.js draws; of a conversation the picture comes first, of a comparison
        it is in every item.
        """
        is_talk = name == "conversation"
        title = "Conversation" if is_talk or not talk.readings else talk.readings[0].question
        return self._file(
            name,
            talk,
            {
                "title": title,
                "about": f"{self.name} · {_now()}",
                "items": list(items),
                "picture": address,
                "columns": columns,
                "width": 720 if is_talk else 1200,
                "first": is_talk,
            },
        )

    def _file(self, name: str, talk: Talk, content: dict[str, Any]) -> dict[str, Any] | None:
        """None where there is nothing to keep yet."""
        return {"name": f"{self.name}-{name}", **content} if talk.readings else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
