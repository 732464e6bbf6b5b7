"""Position: a coloured shape in each corner; what is where. Needs a few tokens that know their place."""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import Drawn, PatchMap, Question, QuestionKind, Split, draw_shape, jittered, pale
from m3.data.synthetic.vocabulary import CORNERS, IMAGE_SIZE, OBJECTS, SHAPE_COLOURS, SHAPES

OBJECT = QuestionKind(
    "position_object",
    (
        "What is at the {place}?",
        "What can be seen at the {place}?",
        "Which object is at the {place}?",
        "Name the object at the {place}.",
    ),
    OBJECTS,
    CORNERS,
)
SHAPE = QuestionKind(
    "position_shape",
    (
        "What shape is at the {place}?",
        "Which shape is at the {place}?",
        "What is the shape of the object at the {place}?",
    ),
    SHAPES,
    CORNERS,
)
COLOUR = QuestionKind(
    "position_colour",
    (
        "What colour is the shape at the {place}?",
        "Which colour is the object at the {place}?",
        "What is the colour of the object at the {place}?",
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
        centre = (24 + 48 * (index % 2) + rng.uniform(-play, play), 24 + 48 * (index // 2) + rng.uniform(-play, play))
        draw_shape(picture, shape, centre, size, jittered(rng, colour))
        draw_shape(ids, shape, centre, size, patches.add(f"{colour} {shape}", f"corner {corner}"))
        things[corner] = (colour, shape)
    questions = _questions(rng, things)
    return Drawn(image, questions, _test_question(rng, things), *patches.labels())


def _questions(rng: Random, things: dict[str, tuple[str, str]]) -> tuple[Question, ...]:
    """Every corner once: for two the whole object, for two shape and colour apart, so that no answer gives another."""
    apart = rng.sample(CORNERS, 2)
    questions: list[Question] = []
    for corner, (colour, shape) in things.items():
        if corner in apart:
            questions += [SHAPE.ask(rng, shape, corner), COLOUR.ask(rng, colour, corner)]
        else:
            questions.append(OBJECT.ask(rng, f"{colour} {shape}", corner))
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
