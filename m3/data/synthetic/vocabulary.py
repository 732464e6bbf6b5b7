"""Words and numbers of the embedded suite, and the class tables of its per-patch labels.

In: nothing. Out: literal tables that the families draw from, and the two label tables a tower can
be pre-trained on.
"""

from typing import Final

IMAGE_SIZE: Final = 96
PATCH_SIZE: Final = 8
PATCH_GRID: Final = IMAGE_SIZE // PATCH_SIZE

Colour = tuple[int, int, int]

# The first six colour shapes, bars and clutter; all eight serve as backgrounds of the scene family.
COLOURS: Final[dict[str, Colour]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 130, 25),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
SHAPE_COLOURS: Final = tuple(COLOURS)[:6]
SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
SHAPE_PLURALS: Final = ("circles", "squares", "triangles", "stars", "crosses")
OBJECTS: Final = tuple(f"{colour} {shape}" for colour in SHAPE_COLOURS for shape in SHAPES)
CORNERS: Final = ("top-left", "top-right", "bottom-left", "bottom-right")
DIGIT_PLACES: Final = ("left", "middle", "right")
BAR_VALUES: Final = tuple(range(1, 9))
LINES: Final = ("first", "second", "third", "fourth")
WORDS: Final = (
    "apple", "bird", "cake", "door", "eagle", "fish", "gold", "house",
    "iron", "jump", "king", "lamp", "moon", "night", "ocean", "piano",
    "queen", "river", "snow", "tree", "uncle", "vase", "wolf", "yard",
    "zebra", "bread", "cloud", "milk", "drum", "salt", "fork", "kite",
)  # fmt: skip

# Things on a patch. Class 0 is plain ground; every other class belongs to one kind of thing.
PATCH_CLASSES: Final[tuple[str, ...]] = (
    "ground",
    *OBJECTS,
    *(f"background {colour}" for colour in COLOURS),
    *(f"digit {digit}" for digit in range(10)),
    *(f"bar {colour}" for colour in SHAPE_COLOURS),
    *(f"word {word}" for word in WORDS),
)
# Places in the picture that things belong to. Slot 0 is nowhere in particular.
PATCH_SLOTS: Final[tuple[str, ...]] = (
    "none",
    *(f"corner {corner}" for corner in CORNERS),
    *(f"digit {position}" for position in DIGIT_PLACES),
    *(f"value {value}" for value in BAR_VALUES),
    *(f"line {line}" for line in LINES),
)
CLASS_INDEX: Final[dict[str, int]] = {name: index for index, name in enumerate(PATCH_CLASSES)}
SLOT_INDEX: Final[dict[str, int]] = {name: index for index, name in enumerate(PATCH_SLOTS)}
