"""Samples, which every data format becomes: a conversation or a document, and its images.

Images stay what the file holds (a path, or the bytes of an encoded image) until a batch is made, so
a data set of any size costs only its text. `<image>` in a user's turn marks where each image
stands, as in LLaVA's data.
"""

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

IMAGE_MARK = "<image>"
"""Mark of an image in files, whatever the tokenizer calls it.

Only in user turns; in an answer it is ordinary text.
"""
VIDEO_MARK = "<video>"
"""Mark of a video, in files and in questions."""


def check_text(text: str, location: str) -> None:
    """Raise a `ValueError` for half of a character.

    JSON may write one (`\\ud83d` alone), and no tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code_point = f"U+{ord(text[error.start]):04X}"
        raise ValueError(
            f"{location} holds half of a character ({code_point}), which cannot be written as UTF-8"
        ) from None


class ImageMarksError(ValueError):
    """Images and the marks that say where they stand differ in number."""


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """Words of one side. `learned`: whether an answer is.

    `content` is a text, in which a user's `<image>` marks stand for images; or the texts around the
    images, one more than images, in which `<image>` is ordinary text.
    """

    role: Role
    content: InitVar[str | tuple[str, ...]]
    learned: bool = True
    texts: tuple[str, ...] = field(init=False)

    def __post_init__(self, content: str | tuple[str, ...]) -> None:
        if isinstance(content, str):
            content = tuple(content.split(IMAGE_MARK)) if self.role == "user" else (content,)
        # the formats refuse images that a user does not show
        assert self.role == "user" or len(content) == 1
        object.__setattr__(self, "texts", content)  # frozen

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
        turn_roles = roles[1:] if roles[:1] == ["system"] else roles
        expected_roles = ["user", "assistant"] * max(1, (len(turn_roles) + 1) // 2)
        if turn_roles != expected_roles:
            raise ValueError(
                f"sample {self.id!r}: turns must go user, assistant, user, assistant ... and end "
                "with an assistant, behind a system prompt or none; got "
                f"{', '.join(roles) if roles else 'no turns'}"
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
                f"sample {self.id!r}: all of its answers have weight 0; there is nothing to learn "
                "from it"
            )
        num_marks = sum(len(turn.texts) - 1 for turn in self.turns)
        if num_marks != len(self.images):
            raise ImageMarksError(
                f"sample {self.id!r}: {num_marks} {IMAGE_MARK} marks in the user's turns but "
                f"{len(self.images)} images. Write one {IMAGE_MARK} where each image stands"
            )


@dataclass(frozen=True)
class Document:
    """Text and images in reading order.

    There are no questions and answers: all of the text is learned, and its end.

    `texts` has one entry more than `images`: before the first image, between the images and behind
    the last. An entry may be empty. `<image>` in a text is ordinary text. `unused` is
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
                "expected one more than images (before the first, between, behind the last; empty "
                "ones count)"
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
