"""What the page shows of a `Talk`, as HTML. Everything that a user or the model wrote is escaped.

In: readings, lines of grids, a picture. Out: HTML; the classes are styled in templates/ui.css.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable

from PIL import Image

from m3.processing.token_grid import Line
from m3.serving.ui.state import Reading, caption, duration, figures, heading

TEMPLATES: Traversable = files("m3.serving").joinpath("templates")
SIDE = 320
"""Longest side of the picture that cards show, in pixels."""


def conversation(readings: Sequence[Reading], is_busy: bool = False) -> str:
    """A log: a screen reader tells what is new once an answer is whole."""
    if not readings:
        return '<p class="m3-empty">Choose a picture or a video, ask a question, and move the scale.</p>'
    turns = []
    for number, reading in enumerate(readings, start=1):
        writing = is_busy and number == len(readings)
        turns.append(
            f'<li class="m3-asked"><span class="m3-sr">You: </span>{text(reading.question)}</li>'
        )
        turns.append(
            f'<li class="m3-said"><span class="m3-sr">Answer: </span>{_answer(reading, writing)}'
            f'<span class="m3-caption">{text(caption(reading))}</span></li>'
        )
    busy = "true" if is_busy else "false"
    return f'<ol class="m3-log" role="log" aria-label="Conversation" aria-busy="{busy}">{"".join(turns)}</ol>'


def comparison(
    readings: Sequence[Reading],
    lines: Mapping[int, Sequence[Line]],
    aspect: float,
    look_seconds: float | None,
    is_busy: bool = False,
) -> str:
    """A card per scale.

    The picture itself is in `picture_style`, once for all. `aspect`: width / height.
    """
    if not readings:
        return '<p class="m3-empty">Compare puts one question at every trained scale, side by side.</p>'
    note = ""
    if look_seconds is not None:
        note = (
            f'<p class="m3-note">{text(readings[0].question)} <span class="m3-caption">Looked at '
            "once "
            f"({duration(look_seconds)} with the first word); every scale reads the same "
            "features.</span></p>"
        )
    now = (
        next((n for n, one in enumerate(readings) if one.reason is None), None) if is_busy else None
    )
    cards = [
        _card(one, lines.get(one.scale, ()), aspect, n == now) for n, one in enumerate(readings)
    ]
    busy = "true" if is_busy else "false"
    return f'{note}<ul class="m3-cards" aria-label="One answer per scale" aria-busy="{busy}">{"".join(cards)}</ul>'


def _card(reading: Reading, lines: Sequence[Line], aspect: float, is_busy: bool) -> str:
    cells = (
        f"with the grid of {reading.scale} cells that are one token each"
        if lines
        else "without a grid"
    )
    return (
        f'<li class="m3-card"><h3>{heading(reading.scale, reading.is_trained)}</h3>'
        f'<div class="m3-picture" role="img" aria-label="The picture {cells}" style="aspect-ratio: '
        f'{aspect:.4f}">'
        f"{grid(lines)}</div>"
        f'<p class="m3-answer">{_answer(reading, is_busy)}</p>'
        f'<p class="m3-caption">{text(chr(10).join(figures(reading)))}</p></li>'
    )


def grid(lines: Sequence[Line]) -> str:
    """SVG lines: dark ones under light ones, so that they are seen on anything."""
    path = "".join(f"M{x1:.5g} {y1:.5g}L{x2:.5g} {y2:.5g}" for x1, y1, x2, y2 in lines)
    thin = " m3-fine" if len(lines) > 16 else ""
    return (
        f'<svg class="m3-grid{thin}" viewBox="0 0 1 1" preserveAspectRatio="none" '
        'aria-hidden="true">'
        f'<path class="m3-dark" d="{path}"/><path class="m3-light" d="{path}"/></svg>'
    )


def picture_address(picture: Image.Image) -> str:
    """A small copy as a `data:` address."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture_style(address: str) -> str:
    """Gives all cards their picture."""
    return f"<style>.m3-picture {{ background-image: url({address}); }}</style>"


def scale_slider(scales: Sequence[int], trained: Sequence[int], start: int) -> str:
    """A native slider over the notches; templates/scale.js tells the page the scale that it
    stands at.
    """
    marks = "".join(
        f"<span{'' if scale in trained else ' class=m3-untrained title=' + chr(34) + 'reachable, not trained' + chr(34)}>"
        f"{scale}</span>"
        for scale in scales
    )
    return (
        '<div class="m3-scale"><label for="m3-scale-input">Scale: visual tokens per picture or '
        "tile</label>"
        f'<output for="m3-scale-input" aria-hidden="true">{start}</output>'
        f'<input id="m3-scale-input" type="range" min="0" max="{len(scales) - 1}" step="1" '
        f'value="{scales.index(start)}" '
        f'data-scales="{" ".join(map(str, scales))}" aria-valuetext="{start} visual tokens">'
        f'<div class="m3-marks" aria-hidden="true">{marks}</div></div>'
    )


def _answer(reading: Reading, is_busy: bool) -> str:
    return text(reading.text) + (
        '<span class="m3-cursor" aria-hidden="true">▍</span>' if is_busy else ""
    )


def text(written: str) -> str:
    """Plain text as HTML, its lines kept."""
    return html.escape(written).replace("\n", "<br>")
