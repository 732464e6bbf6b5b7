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

from m3.data.synthetic.drawing import (
    DrawnPicture,
    PatchMap,
    QuestionKind,
    Split,
    pale_colour,
    vary_colour,
)
from m3.data.synthetic.vocabulary import BAR_VALUES, IMAGE_SIZE, PATCH_SIZE, SHAPE_COLOURS, Colour

NUM_BARS = 4
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
        "What is the value of the {subject} bar?",
        "How high is the {subject} bar?",
        "Which value does the {subject} bar have?",
        "Read the value of the {subject} bar.",
    ),
    tuple(str(value) for value in BAR_VALUES),
    SHAPE_COLOURS,
)
KINDS = (HIGHEST, LOWEST, VALUE)


@dataclass(frozen=True)
class BarChart:
    """One figure whose bars are moved for every picture, as building a figure takes far longer."""

    figure: Figure
    canvas: FigureCanvasAgg
    axes: Axes
    bars: tuple[Rectangle, ...]

    def render(
        self, boxes: list[tuple[float, float, int]], colours: list[Colour], ground: Colour
    ) -> Image.Image:
        """Boxes are (left, width) in pixels and the value; the picture is 96x96 RGB."""
        self.axes.set_facecolor(_unit_colour(ground))
        self.figure.set_facecolor(_unit_colour(ground))
        for bar, (bar_left, bar_width, bar_value), colour in zip(
            self.bars, boxes, colours, strict=True
        ):
            bar.set_bounds(bar_left, 0, bar_width, bar_value)
            bar.set_facecolor(_unit_colour(colour))
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


@functools.cache
def bar_chart() -> BarChart:
    """The figure of this process (Agg, no pyplot).

    96x96 pixels, light lines at every unit, labels at 2, 4, 6, 8.
    """
    figure = Figure(figsize=(1, 1), dpi=IMAGE_SIZE)
    canvas = FigureCanvasAgg(figure)
    left_margin = PATCH_SIZE / IMAGE_SIZE
    axes = figure.add_axes(
        (
            left_margin,
            1 - BASELINE / IMAGE_SIZE,
            1 - left_margin - 2 / IMAGE_SIZE,
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
    for spine_side in ("top", "right"):
        axes.spines[spine_side].set_visible(False)
    for spine_side in ("left", "bottom"):
        axes.spines[spine_side].set_linewidth(0.6)
    bars = tuple(Rectangle((0, 0), 1, 1, linewidth=0) for _ in range(NUM_BARS))
    for bar in bars:
        axes.add_patch(bar)
    return BarChart(figure, canvas, axes, bars)


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture; `split` makes no difference here."""
    colours = rng.sample(SHAPE_COLOURS, NUM_BARS)
    bar_values = _draw_values(rng)
    bar_pitch = (IMAGE_SIZE - 2 - PATCH_SIZE - 3) / NUM_BARS
    patches = PatchMap(threshold=0.4)
    bar_boxes: list[tuple[float, float, int]] = []
    for bar_index, (colour, value) in enumerate(zip(colours, bar_values, strict=True)):
        bar_width = rng.uniform(13, 17)
        bar_left = (
            PATCH_SIZE + 2 + bar_pitch * bar_index + rng.uniform(1, bar_pitch - bar_width - 1)
        )
        bar_boxes.append((bar_left, bar_width, value))
        bar_top = BASELINE - PATCH_SIZE * value
        patches.add_box(
            (bar_left, bar_top, bar_left + bar_width, BASELINE), f"bar {colour}", f"value {value}"
        )
    image = bar_chart().render(
        bar_boxes, [vary_colour(rng, colour) for colour in colours], pale_colour(rng, 232, 250, 4)
    )
    highest_question = HIGHEST.ask(rng, colours[bar_values.index(max(bar_values))])
    lowest_question = LOWEST.ask(rng, colours[bar_values.index(min(bar_values))])
    value_questions = [
        VALUE.ask(rng, str(value), colour)
        for colour, value in zip(colours, bar_values, strict=True)
    ]
    questions = [highest_question, lowest_question, *value_questions]
    test_question = rng.choice(
        (highest_question, lowest_question, value_questions[0], value_questions[1])
    )
    rng.shuffle(questions)
    return DrawnPicture(image, tuple(questions), test_question, *patches.labels())


def _draw_values(rng: Random) -> list[int]:
    """Four values whose largest and smallest are unique."""
    while True:
        bar_values = rng.choices(BAR_VALUES, k=NUM_BARS)
        if bar_values.count(max(bar_values)) == 1 and bar_values.count(min(bar_values)) == 1:
            return bar_values


def _unit_colour(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
