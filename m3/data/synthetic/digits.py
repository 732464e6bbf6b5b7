"""Digits: three real handwritten digits in a row; read one, or all. Needs fine tokens.

The handwriting is scikit-learn's digits set (1,797 digits of 8x8, from the UCI Optical Recognition
of Handwritten Digits data). Every fifth of them is kept for the test split, so a test picture shows
handwriting never trained on.
"""

import functools
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3.data.synthetic.drawing import (
    DrawnPicture,
    PatchMap,
    Question,
    QuestionKind,
    Split,
    pale_colour,
)
from m3.data.synthetic.vocabulary import DIGIT_PLACES, IMAGE_SIZE

TEST_EVERY = 5
NUMERALS = tuple("0123456789")
SINGLE = QuestionKind(
    "digits_single",
    (
        "Which digit is on the {subject}?",
        "What digit is written on the {subject}?",
        "Read the digit on the {subject}.",
        "Which number is on the {subject}?",
    ),
    NUMERALS,
    ("left", "right"),
)
MIDDLE = QuestionKind(
    "digits_middle",
    (
        "Which digit is in the middle?",
        "What digit is written in the middle?",
        "Read the digit in the middle.",
        "Which number is in the middle?",
    ),
    NUMERALS,
)
NUMBER = QuestionKind(
    "digits_number",
    ("Read the number.", "Read all three digits.", "Which three digits are written?"),
    tuple(f"{a} {b} {c}" for a in NUMERALS for b in NUMERALS for c in NUMERALS),
)
KINDS = (SINGLE, MIDDLE, NUMBER)


@functools.cache
def handwriting(split: Split) -> tuple[NDArray[np.uint8], tuple[tuple[int, ...], ...]]:
    """All digits as ink [1797, 10, 10] (0..255), and the split's indices for each value 0..9.

    The 8x8 drawings touch their edges; the empty rim added here keeps enlarged strokes from being
    cut off.
    """
    # takes seconds to import, and only this family needs it
    from sklearn.datasets import load_digits

    # 64 levels 0..16 a drawing
    levels, digit_values = (np.asarray(array) for array in load_digits(return_X_y=True))
    ink_levels = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ink_levels = np.pad(ink_levels, ((0, 0), (1, 1), (1, 1)))
    split_indices = [
        index for index in range(len(ink_levels)) if (index % TEST_EVERY == 0) == (split == "test")
    ]
    return ink_levels, tuple(
        tuple(index for index in split_indices if digit_values[index] == value)
        for value in range(10)
    )


def draw_picture(rng: Random, split: Split) -> DrawnPicture:
    """Draw one picture with handwriting of the split."""
    ink_levels, indices_of = handwriting(split)
    ground_colour = pale_colour(rng, 185, 245, 12)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), ground_colour)
    darkest_level = rng.randint(0, 75)
    pen_colour = tuple(min(100, darkest_level + rng.randint(0, 25)) for _ in range(3))
    patches = PatchMap(threshold=0.5)
    digit_texts: list[str] = []
    for index, position in enumerate(DIGIT_PLACES):
        digit_value = rng.randrange(10)
        glyph_size = rng.randint(33, 36)  # with the rim: strokes are about 28 px high
        glyph_left = 32 * index + 16 - glyph_size // 2 + rng.randint(-1, 1)
        glyph_top = 48 - glyph_size // 2 + rng.randint(-8, 8)
        glyph = Image.fromarray(ink_levels[rng.choice(indices_of[digit_value])])
        glyph = glyph.resize((glyph_size, glyph_size), Image.Resampling.BICUBIC).rotate(
            rng.uniform(-8, 8), Image.Resampling.BILINEAR
        )
        image.paste(pen_colour, (glyph_left, glyph_top), glyph)
        patches.add_box(
            (
                glyph_left + 6,
                glyph_top + 3,
                glyph_left + glyph_size - 6,
                glyph_top + glyph_size - 3,
            ),
            f"digit {digit_value}",
            f"digit {position}",
        )
        digit_texts.append(str(digit_value))
    single_questions = [
        _ask_single(rng, position, digit_value)
        for position, digit_value in zip(DIGIT_PLACES, digit_texts, strict=True)
    ]
    number_question = NUMBER.ask(rng, " ".join(digit_texts))
    rng.shuffle(single_questions)
    # The whole number before the single digits or after them: asked first it must be read, asked
    # last it is known.
    questions = (
        [number_question, *single_questions]
        if rng.random() < 0.35
        else [*single_questions, number_question]
    )
    test_question = number_question if rng.random() < 0.2 else single_questions[0]
    return DrawnPicture(image, tuple(questions), test_question, *patches.labels())


def _ask_single(rng: Random, position: str, digit_text: str) -> Question:
    return (
        MIDDLE.ask(rng, digit_text)
        if position == "middle"
        else SINGLE.ask(rng, digit_text, position)
    )
