"""Count: one to six small shapes at random places. Needs enough tokens to keep the shapes apart."""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import (
    DrawnPicture,
    PatchMap,
    QuestionKind,
    Split,
    draw_shape,
    pale_colour,
    vary_colour,
)
from m3.data.synthetic.vocabulary import IMAGE_SIZE, SHAPE_COLOURS, SHAPE_PLURALS, SHAPES

MAX_SHAPES = 6
CELLS_PER_SIDE = 4  # places per side; a place is 24 px, so shapes of at most 19 px never touch
TOTAL = QuestionKind(
    "count_total",
    (
        "How many shapes are there?",
        "How many shapes can you see?",
        "Count the shapes.",
        "What is the number of shapes in the picture?",
    ),
    tuple(str(number) for number in range(1, MAX_SHAPES + 1)),
)
OF_COLOUR = QuestionKind(
    "count_colour",
    (
        "How many {subject} shapes are there?",
        "How many shapes are {subject}?",
        "Count the {subject} shapes.",
    ),
    tuple(str(number) for number in range(MAX_SHAPES + 1)),
    SHAPE_COLOURS,
)
OF_SHAPE = QuestionKind(
    "count_shape",
    ("How many {subject} are there?", "How many {subject} can you see?", "Count the {subject}."),
    tuple(str(number) for number in range(MAX_SHAPES + 1)),
    SHAPE_PLURALS,
)
KINDS = (TOTAL, OF_COLOUR, OF_SHAPE)


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale_colour(rng))
    patches = PatchMap()
    image_canvas, id_canvas = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    colours: list[str] = []
    shapes: list[str] = []
    cell_size = IMAGE_SIZE / CELLS_PER_SIDE
    for cell_index in rng.sample(
        range(CELLS_PER_SIDE * CELLS_PER_SIDE), rng.randint(1, MAX_SHAPES)
    ):
        colour, shape, size = rng.choice(SHAPE_COLOURS), rng.choice(SHAPES), rng.uniform(13.5, 18.5)
        free_play = (cell_size - size) / 2 - 1.5
        centre = (
            (cell_index % CELLS_PER_SIDE + 0.5) * cell_size + rng.uniform(-free_play, free_play),
            (cell_index // CELLS_PER_SIDE + 0.5) * cell_size + rng.uniform(-free_play, free_play),
        )
        draw_shape(image_canvas, shape, centre, size, vary_colour(rng, colour))
        draw_shape(id_canvas, shape, centre, size, patches.add(f"{colour} {shape}"))
        colours.append(colour)
        shapes.append(shape)
    total_question = TOTAL.ask(rng, str(len(shapes)))
    present_colour, any_colour = rng.choice(colours), rng.choice(SHAPE_COLOURS)
    questions = [
        total_question,
        *(
            OF_COLOUR.ask(rng, str(colours.count(colour)), colour)
            for colour in dict.fromkeys((present_colour, any_colour))
        ),
    ]
    for shape in dict.fromkeys((rng.choice(shapes), rng.choice(SHAPES))):
        questions.append(
            OF_SHAPE.ask(rng, str(shapes.count(shape)), SHAPE_PLURALS[SHAPES.index(shape)])
        )
    rng.shuffle(questions)
    return DrawnPicture(image, tuple(questions), total_question, *patches.labels())
