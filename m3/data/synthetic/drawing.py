"""What every family of the embedded suite shares: questions, drawn pictures, shapes and per-patch
labels.

In: a seeded `random.Random`. Out: `Drawn`, one picture with its questions and its patch labels.
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
    """One kind of question: its phrasings, what `{place}` may stand for, and every answer it can
    have.
    """

    name: str
    templates: tuple[str, ...]
    answers: tuple[str, ...]
    places: tuple[str, ...] = ("",)

    def texts(self) -> tuple[str, ...]:
        """Every wording of this kind, for every place."""
        return tuple(
            template.format(place=place) for template in self.templates for place in self.places
        )

    def ask(self, rng: Random, answer: str, place: str = "") -> "Question":
        """Word the question in one of its ways; the answer must be one of the possible ones."""
        assert answer in self.answers, (self.name, answer)
        assert place in self.places, (self.name, place)
        return Question(self.name, rng.choice(self.templates).format(place=place), answer)


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Drawn:
    """A picture (96x96 RGB), its training questions, the one question it gets in the test, and
    labels [12, 12].
    """

    image: Image.Image
    questions: tuple[Question, ...]
    test_question: Question
    patch_class: NDArray[np.uint8]
    patch_slot: NDArray[np.uint8]


@dataclass
class PatchMap:
    """Which thing covers which pixel, reduced to labels per patch.

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
        """Register a thing that fills the box (left, top, right, bottom), right and bottom
        excluded.
        """
        left, top, right, bottom = (round(edge) for edge in box)
        painted = (left, top, right - 1, bottom - 1)
        ImageDraw.Draw(self.ids).rectangle(painted, fill=self.add(class_name, slot_name))

    def labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class and slot per patch, each [12, 12] uint8."""
        tiles = np.asarray(self.ids).reshape(PATCH_GRID, PATCH_SIZE, PATCH_GRID, PATCH_SIZE)
        cover = np.zeros((len(self.things) + 1, PATCH_GRID, PATCH_GRID))
        for thing in range(1, len(self.things) + 1):
            cover[thing] = (tiles == thing).mean(axis=(1, 3))
        winner = np.where(cover.max(axis=0) >= self.threshold, cover.argmax(axis=0), 0)
        classes = [CLASS_INDEX[self.background], *(CLASS_INDEX[name] for name, _ in self.things)]
        slots = [SLOT_INDEX["none"], *(SLOT_INDEX[name] for _, name in self.things)]
        return np.array(classes, dtype=np.uint8)[winner], np.array(slots, dtype=np.uint8)[winner]


def jittered(rng: Random, colour: str, amount: int = 14) -> Colour:
    """A shade of the named colour, each channel off by at most `amount`."""
    red, green, blue = (
        max(0, min(255, level + rng.randint(-amount, amount))) for level in COLOURS[colour]
    )
    return red, green, blue


def pale(rng: Random, low: int = 205, high: int = 235, tint: int = 8) -> Colour:
    """A pale, nearly neutral ground."""
    level = rng.randint(low, high)
    red, green, blue = (min(255, level + rng.randint(-tint, tint)) for _ in range(3))
    return red, green, blue


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[Number, Number],
    size: Number,
    fill: Colour | int,
) -> None:
    """Paint a filled shape about `size` pixels wide."""
    x, y = centre
    radius = size / 2
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        side = radius * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif shape == "triangle":
        draw.polygon(
            ((x, y - radius), (x + radius, y + radius * 0.85), (x - radius, y + radius * 0.85)),
            fill=fill,
        )
    elif shape == "star":
        draw.polygon(_star(x, y, radius * 1.1), fill=fill)
    elif shape == "cross":
        arm = radius * 0.34
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    else:
        raise AssertionError(f"no such shape: {shape}")


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star, one point up."""
    corners: list[tuple[float, float]] = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.42
        angle = math.pi * corner / 5
        corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
    return corners
