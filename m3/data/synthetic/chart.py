"""Chart: a matplotlib bar chart of four bars; the highest, the lowest, a value. Needs fine tokens.

One unit of the y axis is exactly one patch (8 px) high and the baseline lies on a patch edge.
"""

import functools
from dataclasses import dataclass
from random import Random

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from m3.data.synthetic.drawing import Drawn, PatchMap, QuestionKind, Split, jittered, pale
from m3.data.synthetic.vocabulary import BAR_VALUES, IMAGE_SIZE, PATCH_SIZE, SHAPE_COLOURS, Colour

BARS = 4
TOP_UNIT = 9.5  # the y axis reaches a little above the highest value
BASELINE = IMAGE_SIZE - 2 * PATCH_SIZE  # pixel row under the bars
HIGHEST = QuestionKind(
    "chart_highest",
    (
        "Which bar is the highest?",
        "Which bar is the tallest?",
        "What colour is the highest bar?",
        "Which colour has the largest value?",
    ),
    SHAPE_COLOURS,
)
LOWEST = QuestionKind(
    "chart_lowest",
    (
        "Which bar is the lowest?",
        "Which bar is the shortest?",
        "What colour is the lowest bar?",
        "Which colour has the smallest value?",
    ),
    SHAPE_COLOURS,
)
VALUE = QuestionKind(
    "chart_value",
    (
        "What is the value of the {place} bar?",
        "How high is the {place} bar?",
        "Which value does the {place} bar have?",
        "Read the value of the {place} bar.",
    ),
    tuple(str(value) for value in BAR_VALUES),
    SHAPE_COLOURS,
)
KINDS = (HIGHEST, LOWEST, VALUE)


@dataclass(frozen=True)
class BarChart:
    """One figure whose bars are moved and painted anew for every picture; building a figure
    takes far longer.
    """

    figure: Figure
    canvas: FigureCanvasAgg
    axes: Axes
    bars: tuple[Rectangle, ...]

    def render(
        self, boxes: list[tuple[float, float, int]], colours: list[Colour], ground: Colour
    ) -> Image.Image:
        """Boxes are (left, width) in pixels and the value; the picture is 96x96 RGB."""
        self.axes.set_facecolor(_unit(ground))
        self.figure.set_facecolor(_unit(ground))
        for bar, (left, width, value), colour in zip(self.bars, boxes, colours, strict=True):
            bar.set_bounds(left, 0, width, value)
            bar.set_facecolor(_unit(colour))
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


@functools.cache
def bar_chart() -> BarChart:
    """The figure of this process (Agg, no pyplot): 96x96 pixels, light lines at every unit,
    labels at 2, 4, 6, 8.
    """
    figure = Figure(figsize=(1, 1), dpi=IMAGE_SIZE)
    canvas = FigureCanvasAgg(figure)
    left = PATCH_SIZE / IMAGE_SIZE
    axes = figure.add_axes(
        (
            left,
            1 - BASELINE / IMAGE_SIZE,
            1 - left - 2 / IMAGE_SIZE,
            TOP_UNIT * PATCH_SIZE / IMAGE_SIZE,
        )
    )
    axes.set_xlim(PATCH_SIZE, IMAGE_SIZE - 2)
    axes.set_ylim(0, TOP_UNIT)
    axes.xaxis.set_visible(False)
    axes.set_yticks((2, 4, 6, 8))
    axes.set_yticks(BAR_VALUES, minor=True)
    axes.tick_params(axis="y", which="both", length=0, labelsize=5.5, pad=1.5)
    axes.grid(axis="y", which="both", color="0.72", linewidth=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.6)
    bars = tuple(Rectangle((0, 0), 1, 1, linewidth=0) for _ in range(BARS))
    for bar in bars:
        axes.add_patch(bar)
    return BarChart(figure, canvas, axes, bars)


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture; `split` makes no difference here."""
    colours = rng.sample(SHAPE_COLOURS, BARS)
    values = _values(rng)
    pitch = (IMAGE_SIZE - 2 - PATCH_SIZE - 3) / BARS
    patches = PatchMap(threshold=0.4)
    boxes: list[tuple[float, float, int]] = []
    for index, (colour, value) in enumerate(zip(colours, values, strict=True)):
        width = rng.uniform(13, 17)
        left = PATCH_SIZE + 2 + pitch * index + rng.uniform(1, pitch - width - 1)
        boxes.append((left, width, value))
        top = BASELINE - PATCH_SIZE * value
        patches.add_box((left, top, left + width, BASELINE), f"bar {colour}", f"value {value}")
    image = bar_chart().render(
        boxes, [jittered(rng, colour) for colour in colours], pale(rng, 232, 250, 4)
    )
    highest = HIGHEST.ask(rng, colours[values.index(max(values))])
    lowest = LOWEST.ask(rng, colours[values.index(min(values))])
    readings = [
        VALUE.ask(rng, str(value), colour) for colour, value in zip(colours, values, strict=True)
    ]
    questions = [highest, lowest, *readings]
    test_question = rng.choice((highest, lowest, readings[0], readings[1]))
    rng.shuffle(questions)
    return Drawn(image, tuple(questions), test_question, *patches.labels())


def _values(rng: Random) -> list[int]:
    """Four values whose largest and smallest are unique."""
    while True:
        values = rng.choices(BAR_VALUES, k=BARS)
        if values.count(max(values)) == 1 and values.count(min(values)) == 1:
            return values


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
