"""Questions, drawn pictures, shapes and patch labels, which all families of the suite share.

In: a seeded `random.Random`. Out: `DrawnPicture`, with its questions and its patch labels.
"""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m3.data.synthetic.vocabulary import (
    CLASS_INDEX,
    COLOURS,
    IMAGE_SIZE,
    PATCH_GRID,
    PATCH_SIZE,
    SLOT_INDEX,
    Colour,
)

Split = Literal["train", "test"]
Number = int | float


@dataclass(frozen=True)
class QuestionKind:
    """One kind of question: its phrasings, the words for `{subject}`, and every possible answer."""

    name: str
    templates: tuple[str, ...]
    answers: tuple[str, ...]
    subjects: tuple[str, ...] = ("",)

    def texts(self) -> tuple[str, ...]:
        """Every wording of this kind, for every subject."""
        return tuple(
            template.format(subject=subject)
            for template in self.templates
            for subject in self.subjects
        )

    def ask(self, rng: Random, answer: str, subject: str = "") -> "Question":
        """Word the question in one of its ways; the answer must be one of the possible ones."""
        assert answer in self.answers, (self.name, answer)
        assert subject in self.subjects, (self.name, subject)
        return Question(self.name, rng.choice(self.templates).format(subject=subject), answer)


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class DrawnPicture:
    """A picture (96x96 RGB), its training questions, its one test question, and labels [12, 12]."""

    image: Image.Image
    questions: tuple[Question, ...]
    test_question: Question
    patch_class: NDArray[np.uint8]
    patch_slot: NDArray[np.uint8]


@dataclass
class PatchMap:
    """Labels per patch, from the thing that covers each pixel.

    Things are painted into an id image beside the picture. A patch takes the thing that covers most
    of it, if that covers at least `threshold` of the patch.
    """

    threshold: float = 0.25
    background: str = "ground"
    ids: Image.Image = field(default_factory=lambda: Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0))
    things: list[tuple[str, str]] = field(default_factory=list)

    def add(self, class_name: str, slot_name: str = "none") -> int:
        """Register a thing; the number returned is the id to paint it with."""
        self.things.append((class_name, slot_name))
        return len(self.things)

    def add_box(
        self, box: tuple[Number, Number, Number, Number], class_name: str, slot_name: str = "none"
    ) -> None:
        """Register a thing that fills the box (left, top, right, bottom), its ends excluded."""
        box_left, box_top, box_right, box_bottom = (round(edge) for edge in box)
        pixel_box = (box_left, box_top, box_right - 1, box_bottom - 1)
        ImageDraw.Draw(self.ids).rectangle(pixel_box, fill=self.add(class_name, slot_name))

    def labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class and slot per patch, each [12, 12] uint8."""
        patch_ids = np.asarray(self.ids).reshape(PATCH_GRID, PATCH_SIZE, PATCH_GRID, PATCH_SIZE)
        cover_shares = np.zeros((len(self.things) + 1, PATCH_GRID, PATCH_GRID))
        for thing_id in range(1, len(self.things) + 1):
            cover_shares[thing_id] = (patch_ids == thing_id).mean(axis=(1, 3))
        winner_ids = np.where(
            cover_shares.max(axis=0) >= self.threshold, cover_shares.argmax(axis=0), 0
        )
        class_labels = [
            CLASS_INDEX[self.background],
            *(CLASS_INDEX[name] for name, _ in self.things),
        ]
        slot_labels = [SLOT_INDEX["none"], *(SLOT_INDEX[name] for _, name in self.things)]
        class_table = np.array(class_labels, dtype=np.uint8)
        slot_table = np.array(slot_labels, dtype=np.uint8)
        return class_table[winner_ids], slot_table[winner_ids]


def vary_colour(rng: Random, colour: str, max_offset: int = 14) -> Colour:
    """A shade of the named colour, each channel off by at most `amount`."""
    red, green, blue = (
        max(0, min(255, level + rng.randint(-max_offset, max_offset))) for level in COLOURS[colour]
    )
    return red, green, blue


def pale_colour(rng: Random, darkest: int = 205, lightest: int = 235, max_tint: int = 8) -> Colour:
    """A pale, nearly neutral ground."""
    grey_level = rng.randint(darkest, lightest)
    red, green, blue = (min(255, grey_level + rng.randint(-max_tint, max_tint)) for _ in range(3))
    return red, green, blue


def draw_shape(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[Number, Number],
    size: Number,
    fill: Colour | int,
) -> None:
    """Paint a filled shape about `size` pixels wide."""
    x, y = centre
    radius = size / 2
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        half_side = radius * 0.88
        canvas.rectangle((x - half_side, y - half_side, x + half_side, y + half_side), fill=fill)
    elif shape == "triangle":
        canvas.polygon(
            ((x, y - radius), (x + radius, y + radius * 0.85), (x - radius, y + radius * 0.85)),
            fill=fill,
        )
    elif shape == "star":
        canvas.polygon(_star_corners(x, y, radius * 1.1), fill=fill)
    elif shape == "cross":
        half_width = radius * 0.34
        canvas.rectangle((x - radius, y - half_width, x + radius, y + half_width), fill=fill)
        canvas.rectangle((x - half_width, y - radius, x + half_width, y + radius), fill=fill)
    else:
        raise AssertionError(f"no such shape: {shape}")


def _star_corners(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star, one point up."""
    corners: list[tuple[float, float]] = []
    for corner_number in range(10):
        corner_radius = radius if corner_number % 2 == 0 else radius * 0.42
        angle = math.pi * corner_number / 5
        corners.append((x + corner_radius * math.sin(angle), y - corner_radius * math.cos(angle)))
    return corners
