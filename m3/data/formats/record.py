"""One record with a conversation becomes a `Sample`; its mistakes become sentences.

{"id": "...", "image" | "images": ..., or "video" | "videos": ..., "system": "...", "conversations"
| "messages": [...]}
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3.data.formats.content_keys import is_given
from m3.data.formats.fields import Fields, Unused
from m3.data.formats.media import ImageFile, MediaReader, in_folder
from m3.data.formats.turns import LAYOUTS, TurnReader, Visual, system_turn
from m3.data.sample import IMAGE_MARK, Document, Sample, Turn


@dataclass(frozen=True)
class Options:
    """Settings of a recipe's source for its records.

    `image_folder`: what paths are relative to. `num_frames`: of videos whose record does not say
    it. `ignore`: keys that are left out whatever they hold.
    """

    image_folder: Path | None = None
    num_frames: int | None = None
    ignore: frozenset[str] = frozenset()

    @staticmethod
    def of(
        image_folder: str | Path | None, num_frames: int | None, ignore: Iterable[str]
    ) -> "Options":
        return Options(
            None if image_folder is None else Path(image_folder), num_frames, frozenset(ignore)
        )


class RecordReader:
    """Reads one record: its id, its images or videos, and then what a format makes of them."""

    def __init__(
        self,
        record: Any,
        where: str,
        default_id: str,
        options: Options,
        resolve: Callable[[str], ImageFile] | None = None,
        expected: str = "an object with id, image and conversations",
    ) -> None:
        """
        Args:
            record: a decoded JSON object or a row of a table.
            where: file and record number, for messages.
            default_id: for records without an id.
            options: of the source.
            resolve: what a path in the record stands for; None for a file in
                `options.image_folder`.
            expected: in words, for a record that is no object.
        """
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected {expected}, got {type(record).__name__}")
        self.where = where
        self.unused = Unused(options.ignore)
        self._has_videos = False
        self.fields = Fields(record, where, self.unused)
        self.media = MediaReader(
            where, self.unused, resolve or in_folder(options.image_folder), options.num_frames
        )
        id = self.fields.take("id")
        self.id = default_id if id is None else str(id)

    def visuals(self) -> tuple[list[Visual], str]:
        """The images, or the frames of the videos; and which of the two they are."""
        images = [(image,) for image in self.media.images(self.fields.take("image", "images"))]
        videos = self.fields.take("video", "videos")
        self._has_videos = videos is not None
        if images and videos is not None:
            raise ValueError(
                f"{self.where}: names images and a video ('image' or 'images', 'video' or "
                "'videos'); a record may show one or "
                "the other"
            )
        return (
            ([*self.media.videos(videos)], "video") if videos is not None else ([*images], "image")
        )

    def conversation(self) -> Sample:
        """The turns under `conversations` or `messages`, behind the system prompt."""
        visuals, kind = self.visuals()
        reader = TurnReader(self.id, self.media, visuals, kind)
        self.fields.take(*(layout.column for layout in LAYOUTS))  # refuses a record with both
        columns = [layout for layout in LAYOUTS if is_given(self.fields.raw(layout.column))]
        columns += [layout for layout in LAYOUTS if layout.column in self.fields.values]
        layout = [*columns, LAYOUTS[0]][0]
        turns = reader.read(self.fields.raw(layout.column), layout)
        return self.sample(reader.images, turns)

    def sample(self, images: Sequence[ImageFile], turns: Sequence[Turn]) -> Sample:
        """The sample, once all of the record is read."""
        turns = system_turn(self.fields.take("system"), turns, self.where)
        self.fields.close(has_media=bool(images) and not self._has_videos)
        try:
            return Sample(self.id, tuple(images), tuple(turns), tuple(self.unused.keys))
        except ValueError as error:
            raise type(error)(f"{self.where}: {error}") from None

    def rounds(self, rounds: Sequence[tuple[str, str]]) -> Sample:
        """Questions and answers; images stand before the first question, unless a question says
        `<image>`.
        """
        visuals, _ = self.visuals()
        images = [image for visual in visuals for image in visual]
        texts = [text for pair in rounds for text in pair]
        if not any(IMAGE_MARK in question for question, _ in rounds):
            texts = [f"{IMAGE_MARK}\n" * len(images) + texts[0], *texts[1:]] if texts else []
        turns = [
            Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)
        ]
        return self.sample(images, turns)

    def document(self, texts: Sequence[str], images: Sequence[ImageFile]) -> Document:
        """The document, once all of the record is read."""
        self.fields.close(has_media=bool(images))
        try:
            return Document(self.id, tuple(images), tuple(texts), tuple(self.unused.keys))
        except ValueError as error:
            raise type(error)(f"{self.where}: {error}") from None


def sample_from_record(
    record: Any,
    where: str,
    default_id: str,
    options: Options = Options(),
    resolve: Callable[[str], ImageFile] | None = None,
) -> Sample:
    """A conversation; see `RecordReader`.

    Raises:
        ValueError: anything missing or of the wrong kind, or content that is not read; the text
            begins with `where`.
    """
    return RecordReader(record, where, default_id, options, resolve).conversation()
