"""Document: four lines of one printed word each; read a line. Needs fine tokens.

The typeface is DejaVu Sans Bold, which matplotlib ships.
"""

import functools
from random import Random

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from m3.data.synthetic.drawing import Drawn, PatchMap, QuestionKind, Split, pale
from m3.data.synthetic.vocabulary import IMAGE_SIZE, LINES, WORDS

FONT_SIZES = (17, 18)
LINE = QuestionKind(
    "document_line",
    (
        "Read the {place} line.",
        "What does the {place} line say?",
        "Which word is on the {place} line?",
        "What is written on the {place} line?",
    ),
    WORDS,
    LINES,
)
KINDS = (LINE,)


@functools.cache
def typeface(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold at a size in pixels, laid out by FreeType alone so that machines agree."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold")
    path = font_manager.findfont(properties, fallback_to_default=False)
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale(rng, 215, 250, 8))
    picture = ImageDraw.Draw(image)
    patches = PatchMap(threshold=0.3)
    ink = tuple(rng.randint(0, 60) for _ in range(3))
    words = rng.sample(WORDS, len(LINES))
    height = IMAGE_SIZE // len(LINES)
    for index, (line, word) in enumerate(zip(LINES, words, strict=True)):
        font = typeface(rng.choice(FONT_SIZES))
        width = round(font.getlength(word))
        left = rng.randint(3, max(3, IMAGE_SIZE - 3 - width))
        baseline = height * index + 17 + rng.randint(-1, 1)
        picture.text((left, baseline), word, fill=ink, font=font, anchor="ls")
        patches.add_box(
            picture.textbbox((left, baseline), word, font=font, anchor="ls"),
            f"word {word}",
            f"line {line}",
        )
    questions = [LINE.ask(rng, word, line) for line, word in zip(LINES, words, strict=True)]
    rng.shuffle(questions)
    return Drawn(image, tuple(questions), questions[0], *patches.labels())
