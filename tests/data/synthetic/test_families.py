"""Every answer must follow from the patch labels, and the labels from the pixels."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from m3.data.synthetic import digits
from m3.data.synthetic.drawing import DrawnPicture, PatchMap, Question
from m3.data.synthetic.suite import FAMILIES, draw_picture, question_kind
from m3.data.synthetic.vocabulary import (
    BAR_VALUES,
    COLOURS,
    CORNERS,
    DIGIT_PLACES,
    LINES,
    PATCH_CLASSES,
    PATCH_GRID,
    PATCH_SIZE,
    PATCH_SLOTS,
    SHAPE_COLOURS,
    SHAPE_PLURALS,
    SLOT_INDEX,
    WORDS,
)

PICTURES = 25


def nearest_colour(pixel: NDArray[np.uint8]) -> str:
    distance = {
        name: float(np.abs(pixel.astype(float) - level).sum()) for name, level in COLOURS.items()
    }
    return min(distance, key=lambda name: distance[name])


def class_in_slot(drawn: DrawnPicture, slot: str) -> str:
    """The one class seen on the patches of a slot."""
    classes = set(drawn.patch_class[drawn.patch_slot == SLOT_INDEX[slot]].tolist())
    assert len(classes) == 1, (slot, classes)
    return PATCH_CLASSES[classes.pop()]


def place_of(question: Question, places: tuple[str, ...]) -> str:
    (place,) = (place for place in places if place in question.text)
    return place


def scene_answer(drawn: DrawnPicture, question: Question) -> str:
    background = PATCH_CLASSES[np.bincount(drawn.patch_class.ravel()).argmax()].removeprefix(
        "background "
    )
    if question.kind == "scene_colour":
        return background
    return "yes" if background in question.text else "no"


def position_answer(drawn: DrawnPicture, question: Question) -> str:
    colour, shape = class_in_slot(drawn, f"corner {place_of(question, CORNERS)}").split()
    return {
        "position_object": f"{colour} {shape}",
        "position_shape": shape,
        "position_colour": colour,
    }[question.kind]


def count_answer(drawn: DrawnPicture, question: Question) -> str:
    """Shapes stay in their places of 3x3 patches, so each place with a class holds one shape."""
    cells = drawn.patch_class.reshape(4, 3, 4, 3).transpose(0, 2, 1, 3).reshape(16, 9)
    found = [PATCH_CLASSES[cell.max()].split() for cell in cells if cell.any()]
    assert all(len(set(cell[cell > 0].tolist())) == 1 for cell in cells if cell.any())
    if question.kind == "count_total":
        return str(len(found))
    if question.kind == "count_colour":
        return str(sum(colour == place_of(question, SHAPE_COLOURS) for colour, _ in found))
    plural = place_of(question, SHAPE_PLURALS)
    return str(sum(plural.startswith(shape) for _, shape in found))


def digits_answer(drawn: DrawnPicture, question: Question) -> str:
    if question.kind == "digits_number":
        return " ".join(
            class_in_slot(drawn, f"digit {place}").removeprefix("digit ") for place in DIGIT_PLACES
        )
    return class_in_slot(drawn, f"digit {place_of(question, DIGIT_PLACES)}").removeprefix("digit ")


def chart_answer(drawn: DrawnPicture, question: Question) -> str:
    """Values are read from the height of each bar in patches, not from the slots."""
    heights: dict[str, int] = {}
    for colour in SHAPE_COLOURS:
        own = drawn.patch_class == PATCH_CLASSES.index(f"bar {colour}")
        if own.any():
            heights[colour] = int(own.any(axis=1).sum())
            assert class_in_slot_values(drawn, own) == {f"value {heights[colour]}"}
    assert len(heights) == 4
    if question.kind == "chart_value":
        return str(heights[place_of(question, SHAPE_COLOURS)])
    return (max if question.kind == "chart_highest" else min)(
        heights, key=lambda colour: heights[colour]
    )


def class_in_slot_values(drawn: DrawnPicture, own: NDArray[np.bool_]) -> set[str]:
    return {PATCH_SLOTS[slot] for slot in drawn.patch_slot[own].tolist()}


def document_answer(drawn: DrawnPicture, question: Question) -> str:
    return class_in_slot(drawn, f"line {place_of(question, LINES)}").removeprefix("word ")


ANSWERS: dict[str, Callable[[DrawnPicture, Question], str]] = {
    "scene": scene_answer,
    "position": position_answer,
    "count": count_answer,
    "digits": digits_answer,
    "chart": chart_answer,
    "document": document_answer,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_follow_from_the_patch_labels(family: str) -> None:
    checked = 0
    for index in range(PICTURES):
        drawn = draw_picture("train", family, index, seed=3)
        assert drawn.patch_class.shape == drawn.patch_slot.shape == (PATCH_GRID, PATCH_GRID)
        for question in (*drawn.questions, drawn.test_question):
            assert ANSWERS[family](drawn, question) == question.answer, (index, question)
            checked += 1
    assert checked >= 3 * PICTURES


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_a_picture_differ_and_name_their_kind(family: str) -> None:
    for index in range(PICTURES):
        drawn = draw_picture("train", family, index, seed=4)
        texts = [question.text for question in drawn.questions]
        assert len(texts) == len(set(texts)) >= 3
        for question in (*drawn.questions, drawn.test_question):
            assert question_kind(family, question.text).name == question.kind


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_belongs_to_two_kinds(family: str) -> None:
    texts = [text for kind in FAMILIES[family].kinds for text in kind.texts()]
    assert len(texts) == len(set(texts))
    assert all(3 <= len(kind.templates) <= 5 for kind in FAMILIES[family].kinds)


@pytest.mark.parametrize("family", ["scene", "position", "chart"])
def test_labels_agree_with_the_pixels(family: str) -> None:
    """The pixel in the middle of a patch that a thing fills all around has that thing's colour."""
    checked = 0
    for index in range(PICTURES):
        drawn = draw_picture("test", family, index, seed=5)
        pixels = np.asarray(drawn.image)
        labels = drawn.patch_class
        for row in range(1, PATCH_GRID - 1):
            for column in range(1, PATCH_GRID - 1):
                around = labels[row - 1 : row + 2, column - 1 : column + 2]
                if family == "chart":
                    around = labels[row - 1 : row + 2, column]  # bars are two patches wide
                name = PATCH_CLASSES[labels[row, column]]
                if name == "ground" or len(set(around.ravel().tolist())) > 1:
                    continue
                centre = pixels[
                    row * PATCH_SIZE + PATCH_SIZE // 2, column * PATCH_SIZE + PATCH_SIZE // 2
                ]
                # a bar may cover only part of the patch: take the pixel it fills most surely
                if family == "chart":
                    strip = pixels[
                        row * PATCH_SIZE + 4, column * PATCH_SIZE : (column + 1) * PATCH_SIZE
                    ]
                    centre = strip[
                        int(np.argmax(strip.max(axis=1).astype(int) - strip.min(axis=1)))
                    ]
                assert nearest_colour(centre) in name, (index, row, column, name, centre)
                checked += 1
    assert checked > 2 * PICTURES


def test_handwriting_of_the_splits_is_disjoint_and_complete() -> None:
    ink, train = digits.handwriting("train")
    _, test = digits.handwriting("test")
    train_indices = {index for indices in train for index in indices}
    test_indices = {index for indices in test for index in indices}
    assert not train_indices & test_indices
    assert len(train_indices | test_indices) == len(ink) == 1797
    assert all(len(indices) >= 25 for indices in (*train, *test))
    drawings = {ink[index].tobytes() for index in train_indices}
    assert not [index for index in test_indices if ink[index].tobytes() in drawings]


def test_class_tables_are_complete() -> None:
    assert len(PATCH_CLASSES) == len(set(PATCH_CLASSES)) == 1 + 30 + 8 + 10 + 6 + len(WORDS)
    assert len(PATCH_SLOTS) == len(set(PATCH_SLOTS)) == 1 + 4 + 3 + len(BAR_VALUES) + 4
    assert PATCH_CLASSES[0] == "ground"
    assert PATCH_SLOTS[0] == "none"


def test_patch_takes_the_thing_that_covers_most_of_it() -> None:
    patches = PatchMap(threshold=0.25)
    # all of patch 0, a quarter of patch 1
    patches.add_box((0, 0, 10, 8), "red circle", "corner top-left")
    patches.add_box((11, 0, 16, 8), "bar blue", "value 3")  # five eighths of patch 1
    patches.add_box((24, 0, 25, 8), "digit 4")  # an eighth of patch 3: too little
    classes, slots = patches.labels()
    assert [PATCH_CLASSES[label] for label in classes[0, :4]] == [
        "red circle",
        "bar blue",
        "ground",
        "ground",
    ]
    assert [PATCH_SLOTS[label] for label in slots[0, :4]] == [
        "corner top-left",
        "value 3",
        "none",
        "none",
    ]
    assert classes.sum() == classes[0, :2].sum()


def test_wording_refuses_an_impossible_answer() -> None:
    kind = FAMILIES["count"].kinds[0]
    with pytest.raises(AssertionError):
        kind.ask(Random(0), "7")
