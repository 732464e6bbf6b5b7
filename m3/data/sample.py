"""What every data format becomes: a conversation or a document, and the images it shows.

Images stay what the file holds (a path, or the bytes of an encoded image) until a batch is made, so
a data set of any size costs only its text. `<image>` in a user's turn marks where each image
stands, as in LLaVA's data.
"""

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

IMAGE_MARK = "<image>"
"""How files mark an image, whatever the tokenizer calls it.

Only in user turns; in an answer it is ordinary text.
"""


def check_text(text: str, where: str) -> None:
    """A `ValueError` for half of a character: JSON may write one (`\\ud83d` alone), and no
    tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{where} holds half of a character ({code}), which cannot be written as UTF-8"
        ) from None


class ImageMarksError(ValueError):
    """Images and the marks that say where they stand differ in number."""


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """Words of one side. `learned`: whether an answer is.

    `said` is a text, in which a user's `<image>` marks stand for images; or the texts around the
    images, one more than images, in which `<image>` is ordinary text.
    """

    role: Role
    said: InitVar[str | tuple[str, ...]]
    learned: bool = True
    texts: tuple[str, ...] = field(init=False)

    def __post_init__(self, said: str | tuple[str, ...]) -> None:
        if isinstance(said, str):
            said = tuple(said.split(IMAGE_MARK)) if self.role == "user" else (said,)
        # the formats refuse images that a user does not show
        assert self.role == "user" or len(said) == 1
        object.__setattr__(self, "texts", said)  # frozen

    @property
    def text(self) -> str:
        """All of it, with marks for the images."""
        return IMAGE_MARK.join(self.texts)


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more images.

    The answers are learned; system prompt and user's turns are not.

    `unused`: keys of its record that were not read, for `m3 data check`.

    Raises:
        ValueError: turns do not alternate from a user to an assistant, an answer is empty, none is
            learned, or images and `<image>` marks differ in number.
    """

    id: str
    images: tuple[str | Path | bytes, ...]
    turns: tuple[Turn, ...]
    unused: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        talk = roles[1:] if roles[:1] == ["system"] else roles
        expected = ["user", "assistant"] * max(1, (len(talk) + 1) // 2)
        if talk != expected:
            raise ValueError(
                f"sample {self.id!r}: turns must go user, assistant, user, assistant ... and end "
                "with an assistant, behind a "
                f"system prompt or none; got {', '.join(roles) if roles else 'no turns'}"
            )
        for number, turn in enumerate(self.turns):
            for text in turn.texts:
                check_text(text, f"sample {self.id!r}: turn {number}")
            if turn.role == "assistant" and turn.learned and not turn.text.strip():
                raise ValueError(
                    f"sample {self.id!r}: the answer in turn {number} is empty; there is nothing "
                    "to learn from it"
                )
        if not any(turn.learned for turn in self.turns if turn.role == "assistant"):
            raise ValueError(
                f"sample {self.id!r}: all of its answers have weight 0; there is "
                "nothing to learn from it"
            )
        marks = sum(len(turn.texts) - 1 for turn in self.turns)
        if marks != len(self.images):
            raise ImageMarksError(
                f"sample {self.id!r}: {marks} {IMAGE_MARK} marks in the user's turns but "
                f"{len(self.images)} images. "
                f"Write one {IMAGE_MARK} where each image stands"
            )


@dataclass(frozen=True)
class Document:
    """Text and images in reading order.

    Nobody asks and nobody answers: all of the text is learned, and its end.

    `texts` has one entry more than `images`: what stands before the first image, between the images
    and behind the last. An entry may be empty. `<image>` in a text is ordinary text. `unused` is
    that of `Sample`.

    Raises:
        ValueError: no text at all, or a number of texts that does not fit the images.
    """

    id: str
    images: tuple[str | Path | bytes, ...]
    texts: tuple[str, ...]
    unused: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.images) + 1:
            raise ImageMarksError(
                f"document {self.id!r}: {len(self.texts)} texts around {len(self.images)} images; "
                "expected one more "
                "than images (before the first, between, behind the last; empty ones count)"
            )
        for number, text in enumerate(self.texts):
            check_text(text, f"document {self.id!r}: text {number}")
        if not any(text.strip() for text in self.texts):
            raise ValueError(
                f"document {self.id!r}: has no text; there is nothing to learn from it"
            )


AnySample = Sample | Document


@runtime_checkable
class SampleSource(Protocol):
    """Samples by number: random access, nothing loaded before it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnySample: ...
