"""Records between readers and parsers: a reader reaches them by number, a parser reads one.

In: files. Out: a `Sample` or a `Document` for each record; its mistakes become sentences that begin
with file and record.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from m3.config import describe
from m3.data.formats.fields import RecordFields, UnusedKeys, shorten
from m3.data.formats.media import ImageFile, MediaReader
from m3.data.formats.settings import SourceSettings
from m3.data.sample import Document, Sample, Turn

Visual = tuple[ImageFile, ...]
"""Content of one place in a text: an image, or the frames of a video."""


@dataclass(frozen=True)
class Record:
    """A decoded JSON object or a row of a table, and where it stands.

    `location`: file and record number, for messages. `default_id`: for records without an id.
    `folder`: of relative paths, where the source has no `image_folder`.
    """

    content: Any
    location: str
    default_id: str
    folder: Path | None = None

    def resolve(self, path: str, image_folder: str | None) -> ImageFile:
        """The file that the record calls `path`."""
        folder = self.folder if image_folder is None else Path(image_folder)
        return path if folder is None else str(folder / path)

    def close(self, unused: UnusedKeys) -> None:
        """Refuse content beside the record that nothing in it names."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


class RecordReader(ABC, Generic[AnyRecord]):
    """Records of a source by number; a `ValueError` at the start where its files cannot be read."""

    is_text: ClassVar[bool] = True
    """Whether its files hold no pictures, so that they are small."""
    unread: Mapping[str, int] = {}
    """Files and members that belong to no record: how many, by how their names end."""
    left_out: Mapping[str, int] = {}
    """Records without a number, which the source's filters leave out: how many, by filter."""

    @classmethod
    @abstractmethod
    def find_files(cls, path: str) -> list[Path]:
        """The data files that a source's `path` means."""

    @abstractmethod
    def __init__(self, settings: SourceSettings) -> None: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> AnyRecord: ...


class RecordParser:
    """Steps that all parsers share: the id, the images or videos, and the sample in the end."""

    def __init__(
        self,
        record: Record,
        settings: SourceSettings,
        expected: str = "an object with id, image and conversations",
    ) -> None:
        """
        Args:
            record: as its reader gives it.
            settings: of the source.
            expected: in words, for a record that is no object.
        """
        if not isinstance(record.content, dict):
            raise ValueError(
                f"{record.location}: expected {expected}, got {describe(record.content)}"
            )
        self.record, self.location = record, record.location
        self.unused = UnusedKeys(frozenset(settings.ignore or ()))
        self.fields = RecordFields(record.content, self.location, self.unused)
        self.media = MediaReader(
            self.location,
            self.unused,
            lambda path: record.resolve(path, settings.image_folder),
            settings.num_frames,
        )
        record_id = self.fields.read_one("id")
        self.id = record.default_id if record_id is None else str(record_id)
        self._has_videos = False

    def read_visuals(self) -> tuple[list[Visual], str]:
        """The images, or the frames of the videos; and which of the two they are."""
        images = self.media.read_images(self.fields.read_one("image", "images"))
        videos = self.fields.read_one("video", "videos")
        self._has_videos = videos is not None
        if images and videos is not None:
            raise ValueError(
                f"{self.location}: names images and a video ('image' or 'images', 'video' or "
                "'videos'); a record may show one or the other"
            )
        if videos is not None:
            return self.media.read_videos(videos), "video"
        return [(image,) for image in images], "image"

    def read_images(self) -> list[ImageFile]:
        """All images, frames of videos among them."""
        visuals, _ = self.read_visuals()
        return [image for visual in visuals for image in visual]

    def make_sample(self, images: Sequence[ImageFile], turns: Sequence[Turn]) -> Sample:
        """The conversation, once all of the record is read but the system prompt beside it."""
        turns = self._with_system_prompt(turns)
        self._close(has_media=bool(images) and not self._has_videos)
        try:
            return Sample(self.id, tuple(images), tuple(turns), tuple(self.unused.keys))
        except ValueError as error:
            raise type(error)(f"{self.location}: {error}") from None

    def make_document(self, texts: Sequence[str], images: Sequence[ImageFile]) -> Document:
        """The document, once all of the record is read."""
        self._close(has_media=bool(images))
        try:
            return Document(self.id, tuple(images), tuple(texts), tuple(self.unused.keys))
        except ValueError as error:
            raise type(error)(f"{self.location}: {error}") from None

    def _with_system_prompt(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        system_prompt = self.fields.read_one("system")
        if system_prompt is None:
            return turns
        if not isinstance(system_prompt, str):
            raise ValueError(
                f"{self.location}: 'system' must be text, got {shorten(system_prompt)}"
            )
        if turns and turns[0].role == "system":
            raise ValueError(
                f"{self.location}: has a system prompt under 'system' and another as its first "
                "turn; keep one of them"
            )
        return [Turn("system", system_prompt), *turns]

    def _close(self, has_media: bool) -> None:
        self.fields.close(has_media)
        self.record.close(self.unused)
