"""What every data format becomes: a conversation or a document, and the images it shows.

Images stay what the file holds (a path, or the bytes of an encoded image) until a batch is made, so a data set of any
size costs only its text. `<image>` in a user's turn marks where each image stands, as in LLaVA's data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

IMAGE_MARK = "<image>"
"""How files mark an image, whatever the tokenizer calls it. Only in user turns; in an answer it is ordinary text."""


def check_text(text: str, where: str) -> None:
    """A `ValueError` for half of a character: JSON may write one (`\\ud83d` alone), and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"{where} holds half of a character ({code}), which cannot be written as UTF-8") from None


class ImageMarksError(ValueError):
    """Images and the marks that say where they stand differ in number."""


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more images. The answers are learned, the user's turns are not.

    Raises:
        ValueError: turns do not alternate from a user to an assistant, an answer is empty, or images and `<image>`
            marks differ in number.
    """

    id: str
    images: tuple[str | Path | bytes, ...]
    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        expected = ["user", "assistant"] * max(1, (len(roles) + 1) // 2)
        if roles != expected:
            raise ValueError(
                f"sample {self.id!r}: turns must go user, assistant, user, assistant ... and end with an assistant; "
                f"got {', '.join(roles) if roles else 'no turns'}"
            )
        for number, turn in enumerate(self.turns):
            check_text(turn.text, f"sample {self.id!r}: turn {number}")
            if turn.role == "assistant" and not turn.text.strip():
                raise ValueError(
                    f"sample {self.id!r}: the answer in turn {number} is empty; there is nothing to learn from it"
                )
        marks = sum(turn.text.count(IMAGE_MARK) for turn in self.turns if turn.role == "user")
        if marks != len(self.images):
            raise ImageMarksError(
                f"sample {self.id!r}: {marks} {IMAGE_MARK} marks in the user's turns but {len(self.images)} images. "
                f"Write one {IMAGE_MARK} where each image stands"
            )


@dataclass(frozen=True)
class Document:
    """Text and images in reading order. Nobody asks and nobody answers: all of the text is learned, and its end.

    `texts` has one entry more than `images`: what stands before the first image, between the images and behind the
    last. An entry may be empty. `<image>` in a text is ordinary text.

    Raises:
        ValueError: no text at all, or a number of texts that does not fit the images.
    """

    id: str
    images: tuple[str | Path | bytes, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.images) + 1:
            raise ImageMarksError(
                f"document {self.id!r}: {len(self.texts)} texts around {len(self.images)} images; expected one more "
                "than images (before the first, between, behind the last; empty ones count)"
            )
        for number, text in enumerate(self.texts):
            check_text(text, f"document {self.id!r}: text {number}")
        if not any(text.strip() for text in self.texts):
            raise ValueError(f"document {self.id!r}: has no text; there is nothing to learn from it")


AnySample = Sample | Document


@runtime_checkable
class FilteredSource(Protocol):
    """A source that a recipe's `filters` have left samples out of: how many, by filter. They have no numbers."""

    @property
    def left_out(self) -> Mapping[str, int]: ...


@runtime_checkable
class SampleSource(Protocol):
    """Samples by number: random access, nothing loaded before it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnySample: ...
