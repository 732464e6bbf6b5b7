"""Conversations in the two layouts of the field become a `Sample`.

{"id": "...", "image" | "images": ..., or "video" | "videos": ..., "system": "...",
 "conversations" | "messages": [...]}

LLaVA's and ShareGPT's   {"from": "human", "value": "<image>\\nWhat?"}
transformers' messages   {"role": "user", "content": "<image>\\nWhat?"}, or parts:
                         {"role": "user", "content": [{"type": "image"}, {"type": "text", "text":
                         "What?"}]}

In a user's string `<image>` marks where an image stands (in a record with a video, `<video>` or
`<image>` where that does). In parts, parts are images and text is text. Parts are joined by
newlines, as the chat template does it when the model is used (m3/processing/chat_template.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m3.config import describe
from m3.data.formats.content_keys import is_present
from m3.data.formats.fields import RecordFields, shorten
from m3.data.formats.media import ImageFile, MediaReader
from m3.data.formats.record import Record, RecordParser, Visual
from m3.data.formats.settings import SourceSettings
from m3.data.sample import IMAGE_MARK, VIDEO_MARK, ImageMarksError, Role, Sample, Turn

ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
WEIGHT_KEYS = ("weight", "loss", "train", "learn")
"""Keys of a turn that say whether it is learned: 0 and false, 1 and true."""


@dataclass(frozen=True)
class TurnLayout:
    """Layout of a column of turns: its name, what an entry is called, the keys of role and text."""

    column: str
    entry_name: str
    role_key: str
    text_key: str


LAYOUTS = (
    TurnLayout("conversations", "turn", "from", "value"),
    TurnLayout("messages", "message", "role", "content"),
)


def parse_conversation(record: Record, settings: SourceSettings) -> Sample:
    """The turns under `conversations` or `messages`, behind the system prompt.

    Raises:
        ValueError: anything missing or of the wrong kind, or content that is not read; the text
            begins with the record's location.
    """
    parser = RecordParser(record, settings)
    visuals, visual_kind = parser.read_visuals()
    columns = [layout.column for layout in LAYOUTS]
    parser.fields.read_one(*columns)  # refuses a record with both
    filled = [layout for layout in LAYOUTS if is_present(parser.fields.read_raw(layout.column))]
    named = [layout for layout in LAYOUTS if layout.column in parser.fields.values]
    layout = [*filled, *named, LAYOUTS[0]][0]
    reader = TurnReader(parser.id, parser.media, visuals, visual_kind)
    turns = reader.read_turns(parser.fields.read_raw(layout.column), layout)
    return parser.make_sample(reader.images, turns)


def parse_messages(record: Record, settings: SourceSettings) -> Sample:
    """A conversation that must have `messages`, as Aria's fine-tuning data does.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
     "images": ["a.jpg"]}        or "video": {"path": "a.mp4", "num_frames": 8}, or neither
    """
    check_key(record, "messages", "messages, and images or video;")
    return parse_conversation(record, settings)


def check_key(record: Record, key: str, expected: str) -> None:
    """Refuse a record without `key`; the message names the keys that it has."""
    content = record.content
    if not isinstance(content, dict) or key not in content:
        keys = ", ".join(content) if isinstance(content, dict) else describe(content)
        raise ValueError(
            f"{record.location}: expected an object with {expected} got {keys or 'an empty object'}"
        )


@dataclass
class TurnReader:
    """Reads the turns of one record.

    `visuals`: its images or videos in reading order, which marks and parts claim. `visual_kind`:
    image or video.
    """

    sample_id: str
    media: MediaReader
    visuals: Sequence[Visual]
    visual_kind: str
    images: list[ImageFile] = field(default_factory=list)
    """Images of the turns that were read."""
    _num_claimed: int = 0
    """Places in the turns that stand for one of `visuals`."""

    def read_turns(self, entries: Any, layout: TurnLayout) -> list[Turn]:
        """
        Raises:
            ValueError: anything missing or of the wrong kind.
        """
        location = self.media.location
        entries = rows_of(entries)
        if not isinstance(entries, list):
            raise ValueError(
                f"{location}: {layout.column!r} must be a list of {layout.entry_name}s, got "
                f"{shorten(entries)}"
            )
        turns = [
            self._read_turn(entry, f"{location}, {layout.entry_name} {number}", layout)
            for number, entry in enumerate(entries)
        ]
        if self._num_claimed != len(self.visuals):
            mark = f"<{self.visual_kind}>"
            raise ImageMarksError(
                f"{location}: sample {self.sample_id!r}: {self._num_claimed} {mark} marks in the "
                f"user's turns but {len(self.visuals)} {self.visual_kind}s. Write one {mark} where "
                f"each {self.visual_kind} stands"
            )
        return [turn for turn in turns if turn.role != "system" or turn.text.strip()]

    def _read_turn(self, entry: Any, location: str, layout: TurnLayout) -> Turn:
        if isinstance(entry, dict) and layout.role_key not in entry:
            fitting = (candidate for candidate in LAYOUTS if candidate.role_key in entry)
            layout = next(fitting, layout)
        if (
            not isinstance(entry, dict)
            or layout.role_key not in entry
            or layout.text_key not in entry
        ):
            raise ValueError(
                f"{location}: expected an object with {layout.role_key!r} and {layout.text_key!r}, "
                f"got {shorten(entry)}"
            )
        fields = RecordFields(entry, location, self.media.unused, layout.column)
        role_name = fields.read_raw(layout.role_key)
        content = rows_of(fields.read_raw(layout.text_key))
        role = ROLES.get(role_name) if isinstance(role_name, str) else None
        if role is None:
            raise ValueError(
                f"{location}: {layout.role_key!r} must be one of {', '.join(ROLES)}, got "
                f"{shorten(role_name)}"
            )
        is_learned = _is_learned(fields.read_one(*WEIGHT_KEYS), role, location)
        if isinstance(content, str):
            pieces = self._split_at_marks(content) if role == "user" else [content]
        elif isinstance(content, list) and layout.text_key == "content":
            pieces = self._read_parts(content, role, location)
        else:
            kinds = "text or a list of parts" if layout.text_key == "content" else "text"
            raise ValueError(
                f"{location}: {layout.text_key!r} must be {kinds}, got {shorten(content)}"
            )
        fields.close()
        return Turn(role, self._take_images(pieces), is_learned)

    def _split_at_marks(self, text: str) -> list[str | Visual]:
        is_video = self.visual_kind == "video" and VIDEO_MARK in text
        first_text, *more_texts = text.split(VIDEO_MARK if is_video else IMAGE_MARK)
        pieces: list[str | Visual] = [first_text]
        for next_text in more_texts:
            pieces += [self._claim_visual(), next_text]
        return pieces

    def _claim_visual(self) -> Visual:
        """The next of `visuals`; nothing beyond the last, which `read_turns` refuses in the end."""
        self._num_claimed += 1
        in_range = self._num_claimed <= len(self.visuals)
        return self.visuals[self._num_claimed - 1] if in_range else ()

    def _read_parts(
        self, parts_list: Sequence[Any], role: Role, location: str
    ) -> list[str | Visual]:
        pieces: list[str | Visual] = []
        for number, entry in enumerate(parts_list):
            pieces += ["\n"] * (number > 0)
            pieces.append(self._read_part(entry, role, f"{location}, part {number}"))
        return pieces

    def _read_part(self, entry: Any, role: Role, location: str) -> str | Visual:
        wrong_kind = (
            f"{location}: expected a part with type text, image or video, got {shorten(entry)}"
        )
        if not isinstance(entry, dict):
            raise ValueError(wrong_kind)
        fields = RecordFields(entry, location, self.media.unused, "content")
        kind = fields.read_raw("type")
        if kind == "text" and isinstance(text := fields.read_raw("text"), str):
            fields.close()
            return text
        if kind not in ("image", "image_url", "video"):
            raise ValueError(wrong_kind)
        if role != "user":
            raise ValueError(
                f"{location}: a part of type {kind} in the {role}'s message; only users show images"
            )
        return self._read_video(fields) if kind == "video" else self._read_image(fields)

    def _read_image(self, fields: RecordFields) -> Visual:
        value = fields.read_one("image", "image_url", "url", "path")
        if isinstance(value, dict) and "url" in value:
            address = RecordFields(value, fields.location, self.media.unused, "image_url")
            value = address.read_one("url")
            address.close(has_media=True)
        fields.close(has_media=is_present(value))
        if is_present(value):
            return (self.media.read_image(value),)
        return self._claim_kind("image", fields.location)

    def _read_video(self, fields: RecordFields) -> Visual:
        value = fields.read_one("video", "url", "path")
        num_frames = fields.read_one("num_frames")
        fields.close(strict=True)
        if isinstance(value, str | bytes) and num_frames is not None:
            content_key = "path" if isinstance(value, str) else "bytes"
            value = {content_key: value, "num_frames": num_frames}
        if is_present(value):
            return self.media.read_video(value)
        return self._claim_kind("video", fields.location)

    def _claim_kind(self, kind: str, location: str) -> Visual:
        """The next of `visuals`, for a part that holds nothing itself."""
        other_kind = {"image": "video", "video": "image"}[kind]
        if self.visual_kind == other_kind:
            raise ImageMarksError(
                f"{location}: holds a part of type {kind}, but the record names no {kind}"
            )
        return self._claim_visual()

    def _take_images(self, pieces: Sequence[str | Visual]) -> tuple[str, ...]:
        """The texts around the images of `pieces`; frames of a video stand on their own lines."""
        texts = [""]
        for piece in pieces:
            if isinstance(piece, str):
                texts[-1] += piece
                continue
            for number, image in enumerate(piece):
                self.images.append(image)
                texts[-1] += "\n" * (number > 0)
                texts.append("")
        return tuple(texts)


def _is_learned(weight: Any, role: Role, location: str) -> bool:
    """Tell whether a turn is learned, by the weight that it names; by default answers are."""
    if weight is None:
        return True
    if not isinstance(weight, bool | int | float) or weight not in (0, 1):
        raise ValueError(
            f"{location}: the weight of a turn must be 0 (not learned) or 1 (learned), got "
            f"{shorten(weight)}; other weights belong to a source: `weight` in the recipe"
        )
    if weight and role != "assistant":
        raise ValueError(
            f"{location}: asks to learn what the {role} says; only answers of the assistant are "
            "learned"
        )
    return bool(weight) or role != "assistant"


def rows_of(value: Any) -> Any:
    """A list of objects, where lists under each key of one object stand for it.

    `datasets.Sequence` once made such columns of a list of objects.
    """
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(column, list) for column in value.values())
    ):
        return value
    if len({len(column) for column in value.values()}) != 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
