"""Scene: which of eight colours fills the background, under a little clutter.

One pooled token is enough for it.
"""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import (
    DrawnPicture,
    PatchMap,
    QuestionKind,
    Split,
    draw_shape,
    vary_colour,
)
from m3.data.synthetic.vocabulary import COLOURS, IMAGE_SIZE, SHAPE_COLOURS, SHAPES

COLOUR = QuestionKind(
    "scene_colour",
    (
        "What colour is the background?",
        "Which colour covers most of the picture?",
        "What is the main colour of the image?",
        "Which colour is behind the shapes?",
    ),
    tuple(COLOURS),
)
IS_COLOUR = QuestionKind(
    "scene_is_colour",
    (
        "Is the background {subject}?",
        "Is most of the picture {subject}?",
        "Is {subject} the main colour?",
    ),
    ("yes", "no"),
    tuple(COLOURS),
)
KINDS = (COLOUR, IS_COLOUR)


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture; `split` makes no difference here."""
    background = rng.choice(tuple(COLOURS))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), vary_colour(rng, background))
    patches = PatchMap(background=f"background {background}")
    image_canvas, id_canvas = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    clutter_colours = [colour for colour in SHAPE_COLOURS if colour != background]
    for _ in range(rng.randint(3, 8)):
        colour, shape, size = rng.choice(clutter_colours), rng.choice(SHAPES), rng.uniform(8, 15)
        centre = (rng.uniform(6, IMAGE_SIZE - 6), rng.uniform(6, IMAGE_SIZE - 6))
        draw_shape(image_canvas, shape, centre, size, vary_colour(rng, colour))
        draw_shape(id_canvas, shape, centre, size, patches.add(f"{colour} {shape}"))
    main_question = COLOUR.ask(rng, background)
    other_colours = rng.sample([colour for colour in COLOURS if colour != background], 2)
    probed_colours = (
        [*other_colours, background] if rng.random() < 0.5 else [other_colours[0], background]
    )
    questions = [
        main_question,
        *(
            IS_COLOUR.ask(rng, "yes" if colour == background else "no", colour)
            for colour in probed_colours
        ),
    ]
    rng.shuffle(questions)
    return DrawnPicture(image, tuple(questions), main_question, *patches.labels())
