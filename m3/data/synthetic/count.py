"""Count: one to six small shapes at random places. Needs enough tokens to keep the shapes apart."""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import (
    Drawn,
    PatchMap,
    QuestionKind,
    Split,
    draw_shape,
    jittered,
    pale,
)
from m3.data.synthetic.vocabulary import IMAGE_SIZE, SHAPE_COLOURS, SHAPE_PLURALS, SHAPES

MOST = 6
CELLS = 4  # places per side; a place is 24 px, so shapes of at most 19 px never touch
TOTAL = QuestionKind(
    "count_total",
    (
        "How many shapes are there?",
        "How many shapes can you see?",
        "Count the shapes.",
        "What is the number of shapes in the picture?",
    ),
    tuple(str(number) for number in range(1, MOST + 1)),
)
OF_COLOUR = QuestionKind(
    "count_colour",
    (
        "How many {place} shapes are there?",
        "How many shapes are {place}?",
        "Count the {place} shapes.",
    ),
    tuple(str(number) for number in range(MOST + 1)),
    SHAPE_COLOURS,
)
OF_SHAPE = QuestionKind(
    "count_shape",
    ("How many {place} are there?", "How many {place} can you see?", "Count the {place}."),
    tuple(str(number) for number in range(MOST + 1)),
    SHAPE_PLURALS,
)
KINDS = (TOTAL, OF_COLOUR, OF_SHAPE)


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale(rng))
    patches = PatchMap()
    picture, ids = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    colours: list[str] = []
    shapes: list[str] = []
    cell = IMAGE_SIZE / CELLS
    for place in rng.sample(range(CELLS * CELLS), rng.randint(1, MOST)):
        colour, shape, size = rng.choice(SHAPE_COLOURS), rng.choice(SHAPES), rng.uniform(13.5, 18.5)
        play = (cell - size) / 2 - 1.5
        centre = (
            (place % CELLS + 0.5) * cell + rng.uniform(-play, play),
            (place // CELLS + 0.5) * cell + rng.uniform(-play, play),
        )
        draw_shape(picture, shape, centre, size, jittered(rng, colour))
        draw_shape(ids, shape, centre, size, patches.add(f"{colour} {shape}"))
        colours.append(colour)
        shapes.append(shape)
    total = TOTAL.ask(rng, str(len(shapes)))
    present, any_colour = rng.choice(colours), rng.choice(SHAPE_COLOURS)
    questions = [
        total,
        *(
            OF_COLOUR.ask(rng, str(colours.count(colour)), colour)
            for colour in dict.fromkeys((present, any_colour))
        ),
    ]
    for shape in dict.fromkeys((rng.choice(shapes), rng.choice(SHAPES))):
        questions.append(
            OF_SHAPE.ask(rng, str(shapes.count(shape)), SHAPE_PLURALS[SHAPES.index(shape)])
        )
    rng.shuffle(questions)
    return Drawn(image, tuple(questions), total, *patches.labels())
