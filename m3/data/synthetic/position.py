"""Position: a coloured shape in each corner; what is where.

Needs a few tokens that know their place.

A corner's name is one word ("top-left"), so that one token asks for row and column at once. Asked
in two words, a decoder of this size learnt the row alone in 6,000 steps. One word helps; the model
card of m3-tiny-base tells how far.
"""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import (
    DrawnPicture,
    PatchMap,
    Question,
    QuestionKind,
    Split,
    draw_shape,
    pale_colour,
    vary_colour,
)
from m3.data.synthetic.vocabulary import CORNERS, IMAGE_SIZE, OBJECTS, SHAPE_COLOURS, SHAPES

OBJECT = QuestionKind(
    "position_object",
    (
        "What is in the {subject} corner?",
        "What can be seen in the {subject} corner?",
        "Which object is in the {subject} corner?",
        "Name the object in the {subject} corner.",
    ),
    OBJECTS,
    CORNERS,
)
SHAPE = QuestionKind(
    "position_shape",
    (
        "What shape is in the {subject} corner?",
        "Which shape is in the {subject} corner?",
        "What is the shape of the object in the {subject} corner?",
    ),
    SHAPES,
    CORNERS,
)
COLOUR = QuestionKind(
    "position_colour",
    (
        "What colour is the shape in the {subject} corner?",
        "Which colour is the object in the {subject} corner?",
        "What is the colour of the object in the {subject} corner?",
    ),
    SHAPE_COLOURS,
    CORNERS,
)
KINDS = (OBJECT, SHAPE, COLOUR)


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale_colour(rng))
    patches = PatchMap()
    image_canvas, id_canvas = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    corner_shapes: dict[str, tuple[str, str]] = {}
    for corner_index, corner in enumerate(CORNERS):
        colour, shape, size = rng.choice(SHAPE_COLOURS), rng.choice(SHAPES), rng.uniform(25, 36)
        free_play = (IMAGE_SIZE / 2 - size) / 2 - 2
        centre = (
            24 + 48 * (corner_index % 2) + rng.uniform(-free_play, free_play),
            24 + 48 * (corner_index // 2) + rng.uniform(-free_play, free_play),
        )
        draw_shape(image_canvas, shape, centre, size, vary_colour(rng, colour))
        draw_shape(
            id_canvas, shape, centre, size, patches.add(f"{colour} {shape}", f"corner {corner}")
        )
        corner_shapes[corner] = (colour, shape)
    test_question = _test_question(rng, corner_shapes)
    return DrawnPicture(
        image, _training_questions(rng, corner_shapes), test_question, *patches.labels()
    )


def _training_questions(
    rng: Random, corner_shapes: dict[str, tuple[str, str]]
) -> tuple[Question, ...]:
    """Two corners: one for the whole object, one for shape and colour apart.

    No answer gives another away, and the corners left out keep the later answers from being found
    by elimination.
    """
    object_corner, detail_corner = rng.sample(CORNERS, 2)
    colour, shape = corner_shapes[detail_corner]
    questions = [
        OBJECT.ask(rng, " ".join(corner_shapes[object_corner]), object_corner),
        SHAPE.ask(rng, shape, detail_corner),
        COLOUR.ask(rng, colour, detail_corner),
    ]
    rng.shuffle(questions)
    return tuple(questions)


def _test_question(rng: Random, corner_shapes: dict[str, tuple[str, str]]) -> Question:
    """Three in five ask for the whole object."""
    corner, draw_number = rng.choice(CORNERS), rng.random()
    colour, shape = corner_shapes[corner]
    if draw_number < 0.6:
        return OBJECT.ask(rng, f"{colour} {shape}", corner)
    if draw_number < 0.8:
        return SHAPE.ask(rng, shape, corner)
    return COLOUR.ask(rng, colour, corner)
