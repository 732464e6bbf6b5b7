"""Position: a coloured shape in each corner; what is where.

Needs a few tokens that know their place.

A corner's name is one word ("top-left"), so that one token asks for row and column at once. Asked
in two words, a decoder of this size learnt the row alone in 6,000 steps. One word helps; the model
card of m3-tiny-base tells how far.
"""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import (
    Drawn,
    PatchMap,
    Question,
    QuestionKind,
    Split,
    draw_shape,
    jittered,
    pale,
)
from m3.data.synthetic.vocabulary import CORNERS, IMAGE_SIZE, OBJECTS, SHAPE_COLOURS, SHAPES

OBJECT = QuestionKind(
    "position_object",
    (
        "What is in the {place} corner?",
        "What can be seen in the {place} corner?",
        "Which object is in the {place} corner?",
        "Name the object in the {place} corner.",
    ),
    OBJECTS,
    CORNERS,
)
SHAPE = QuestionKind(
    "position_shape",
    (
        "What shape is in the {place} corner?",
        "Which shape is in the {place} corner?",
        "What is the shape of the object in the {place} corner?",
    ),
    SHAPES,
    CORNERS,
)
COLOUR = QuestionKind(
    "position_colour",
    (
        "What colour is the shape in the {place} corner?",
        "Which colour is the object in the {place} corner?",
        "What is the colour of the object in the {place} corner?",
    ),
    SHAPE_COLOURS,
    CORNERS,
)
KINDS = (OBJECT, SHAPE, COLOUR)


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale(rng))
    patches = PatchMap()
    picture, ids = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    things: dict[str, tuple[str, str]] = {}
    for index, corner in enumerate(CORNERS):
        colour, shape, size = rng.choice(SHAPE_COLOURS), rng.choice(SHAPES), rng.uniform(25, 36)
        play = (IMAGE_SIZE / 2 - size) / 2 - 2
        centre = (
            24 + 48 * (index % 2) + rng.uniform(-play, play),
            24 + 48 * (index // 2) + rng.uniform(-play, play),
        )
        draw_shape(picture, shape, centre, size, jittered(rng, colour))
        draw_shape(ids, shape, centre, size, patches.add(f"{colour} {shape}", f"corner {corner}"))
        things[corner] = (colour, shape)
    test_question = _test_question(rng, things)
    return Drawn(image, _questions(rng, things), test_question, *patches.labels())


def _questions(rng: Random, things: dict[str, tuple[str, str]]) -> tuple[Question, ...]:
    """Two corners: one for the whole object, one for shape and colour apart.

    No answer gives another away, and the corners left out keep the later answers from being found
    by elimination.
    """
    whole, apart = rng.sample(CORNERS, 2)
    colour, shape = things[apart]
    questions = [
        OBJECT.ask(rng, " ".join(things[whole]), whole),
        SHAPE.ask(rng, shape, apart),
        COLOUR.ask(rng, colour, apart),
    ]
    rng.shuffle(questions)
    return tuple(questions)


def _test_question(rng: Random, things: dict[str, tuple[str, str]]) -> Question:
    """Three in five ask for the whole object."""
    corner, chosen = rng.choice(CORNERS), rng.random()
    colour, shape = things[corner]
    if chosen < 0.6:
        return OBJECT.ask(rng, f"{colour} {shape}", corner)
    if chosen < 0.8:
        return SHAPE.ask(rng, shape, corner)
    return COLOUR.ask(rng, colour, corner)
