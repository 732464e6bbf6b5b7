"""Scene: which of eight colours fills the background, under a little clutter.

One pooled token is enough for it.
"""

from random import Random

from PIL import Image, ImageDraw

from m3.data.synthetic.drawing import Drawn, PatchMap, QuestionKind, Split, draw_shape, jittered
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
        "Is the background {place}?",
        "Is most of the picture {place}?",
        "Is {place} the main colour?",
    ),
    ("yes", "no"),
    tuple(COLOURS),
)
KINDS = (COLOUR, IS_COLOUR)


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture; `split` makes no difference here."""
    background = rng.choice(tuple(COLOURS))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), jittered(rng, background))
    patches = PatchMap(background=f"background {background}")
    picture, ids = ImageDraw.Draw(image), ImageDraw.Draw(patches.ids)
    clutter = [colour for colour in SHAPE_COLOURS if colour != background]
    for _ in range(rng.randint(3, 8)):
        colour, shape, size = rng.choice(clutter), rng.choice(SHAPES), rng.uniform(8, 15)
        centre = (rng.uniform(6, IMAGE_SIZE - 6), rng.uniform(6, IMAGE_SIZE - 6))
        draw_shape(picture, shape, centre, size, jittered(rng, colour))
        draw_shape(ids, shape, centre, size, patches.add(f"{colour} {shape}"))
    main = COLOUR.ask(rng, background)
    others = rng.sample([colour for colour in COLOURS if colour != background], 2)
    probes = [*others, background] if rng.random() < 0.5 else [others[0], background]
    questions = [
        main,
        *(IS_COLOUR.ask(rng, "yes" if colour == background else "no", colour) for colour in probes),
    ]
    rng.shuffle(questions)
    return Drawn(image, tuple(questions), main, *patches.labels())
