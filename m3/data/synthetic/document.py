"""Document: four lines of one printed word each; read a line. Needs fine tokens.

The typeface is DejaVu Sans Bold, which matplotlib ships.
"""

import functools
from random import Random

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from m3.data.synthetic.drawing import DrawnPicture, PatchMap, QuestionKind, Split, pale_colour
from m3.data.synthetic.vocabulary import IMAGE_SIZE, LINES, WORDS

FONT_SIZES = (17, 18)
LINE = QuestionKind(
    "document_line",
    (
        "Read the {subject} line.",
        "What does the {subject} line say?",
        "Which word is on the {subject} line?",
        "What is written on the {subject} line?",
    ),
    WORDS,
    LINES,
)
KINDS = (LINE,)


@functools.cache
def typeface(font_size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold at a size in pixels, laid out by FreeType alone so that machines agree."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold")
    font_path = font_manager.findfont(properties, fallback_to_default=False)
    return ImageFont.truetype(font_path, font_size, layout_engine=ImageFont.Layout.BASIC)


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture; `split` makes no difference here."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), pale_colour(rng, 215, 250, 8))
    image_canvas = ImageDraw.Draw(image)
    patches = PatchMap(threshold=0.3)
    ink_colour = tuple(rng.randint(0, 60) for _ in range(3))
    line_words = rng.sample(WORDS, len(LINES))
    line_height = IMAGE_SIZE // len(LINES)
    for line_index, (line, word) in enumerate(zip(LINES, line_words, strict=True)):
        font = typeface(rng.choice(FONT_SIZES))
        word_width = round(font.getlength(word))
        word_left = rng.randint(3, max(3, IMAGE_SIZE - 3 - word_width))
        baseline = line_height * line_index + 17 + rng.randint(-1, 1)
        image_canvas.text((word_left, baseline), word, fill=ink_colour, font=font, anchor="ls")
        patches.add_box(
            image_canvas.textbbox((word_left, baseline), word, font=font, anchor="ls"),
            f"word {word}",
            f"line {line}",
        )
    questions = [LINE.ask(rng, word, line) for line, word in zip(LINES, line_words, strict=True)]
    rng.shuffle(questions)
    return DrawnPicture(image, tuple(questions), questions[0], *patches.labels())
