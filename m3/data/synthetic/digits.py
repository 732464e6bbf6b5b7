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

from m3.data.synthetic.drawing import Drawn, PatchMap, Question, QuestionKind, Split, pale
from m3.data.synthetic.vocabulary import DIGIT_PLACES, IMAGE_SIZE

TEST_EVERY = 5
NUMERALS = tuple("0123456789")
SINGLE = QuestionKind(
    "digits_single",
    (
        "Which digit is on the {place}?",
        "What digit is written on the {place}?",
        "Read the digit on the {place}.",
        "Which number is on the {place}?",
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
    """All digits as ink [1797, 10, 10] (0..255), and for each value 0..9 the indices that belong to
    the split.

    The 8x8 drawings touch their edges; the empty rim added here keeps enlarged strokes from being
    cut off.
    """
    # takes seconds to import, and only this family needs it
    from sklearn.datasets import load_digits

    # 64 levels 0..16 a drawing
    levels, values = (np.asarray(part) for part in load_digits(return_X_y=True))
    ink = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    ink = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    chosen = [index for index in range(len(ink)) if (index % TEST_EVERY == 0) == (split == "test")]
    return ink, tuple(
        tuple(index for index in chosen if values[index] == value) for value in range(10)
    )


def draw(rng: Random, split: Split) -> Drawn:
    """Draw one picture with handwriting of the split."""
    ink, by_value = handwriting(split)
    ground = pale(rng, 185, 245, 12)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), ground)
    dark = rng.randint(0, 75)
    pen = tuple(min(100, dark + rng.randint(0, 25)) for _ in range(3))
    patches = PatchMap(threshold=0.5)
    shown: list[str] = []
    for index, place in enumerate(DIGIT_PLACES):
        value = rng.randrange(10)
        size = rng.randint(33, 36)  # with the rim: strokes are about 28 px high
        left = 32 * index + 16 - size // 2 + rng.randint(-1, 1)
        top = 48 - size // 2 + rng.randint(-8, 8)
        glyph = Image.fromarray(ink[rng.choice(by_value[value])])
        glyph = glyph.resize((size, size), Image.Resampling.BICUBIC).rotate(
            rng.uniform(-8, 8), Image.Resampling.BILINEAR
        )
        image.paste(pen, (left, top), glyph)
        patches.add_box(
            (left + 6, top + 3, left + size - 6, top + size - 3), f"digit {value}", f"digit {place}"
        )
        shown.append(str(value))
    singles = [_single(rng, place, value) for place, value in zip(DIGIT_PLACES, shown, strict=True)]
    number = NUMBER.ask(rng, " ".join(shown))
    rng.shuffle(singles)
    # The whole number before the single digits or after them: asked first it must be read, asked
    # last it is known.
    questions = [number, *singles] if rng.random() < 0.35 else [*singles, number]
    test_question = number if rng.random() < 0.2 else singles[0]
    return Drawn(image, tuple(questions), test_question, *patches.labels())


def _single(rng: Random, place: str, value: str) -> Question:
    return MIDDLE.ask(rng, value) if place == "middle" else SINGLE.ask(rng, value, place)
