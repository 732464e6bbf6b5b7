"""Turns of a conversation in the two layouts of the field become `Turn`s, and the images that they
show.

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

from m3.data.formats.content_keys import is_given
from m3.data.formats.fields import Fields, shown
from m3.data.formats.media import ImageFile, MediaReader
from m3.data.sample import IMAGE_MARK, ImageMarksError, Role, Turn

ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
LEARNED = ("weight", "loss", "train", "learn")
"""Keys of a turn that say whether it is learned: 0 and false, 1 and true."""
VIDEO_MARK = "<video>"
Visual = tuple[ImageFile, ...]
"""Content of one place: an image, or the frames of a video."""


@dataclass(frozen=True)
class Layout:
    """Layout of a column of turns: its name, what an entry is called, the keys of role and text."""

    column: str
    entry: str
    role: str
    text: str


LAYOUTS = (
    Layout("conversations", "turn", "from", "value"),
    Layout("messages", "message", "role", "content"),
)


@dataclass
class TurnReader:
    """Reads the turns of one record.

    `visuals`: its images or videos in reading order, which marks and parts claim.
    """

    id: str
    media: MediaReader
    visuals: Sequence[Visual]
    kind: str
    """Kind of the `visuals`: image or video."""
    images: list[ImageFile] = field(default_factory=list)
    """Those of the turns that were read."""
    _claimed: int = 0
    """Places that stand for one of `visuals`."""

    def read(self, entries: Any, layout: Layout) -> list[Turn]:
        """
        Raises:
            ValueError: anything missing or of the wrong kind.
        """
        where = self.media.where
        entries = rows_of(entries)
        if not isinstance(entries, list):
            raise ValueError(
                f"{where}: {layout.column!r} must be a list of {layout.entry}s, got "
                f"{shown(entries)}"
            )
        turns = [
            self._turn(entry, f"{where}, {layout.entry} {n}", layout)
            for n, entry in enumerate(entries)
        ]
        if self._claimed != len(self.visuals):
            mark = f"<{self.kind}>"
            raise ImageMarksError(
                f"{where}: sample {self.id!r}: {self._claimed} {mark} marks in the user's turns "
                f"but {len(self.visuals)} "
                f"{self.kind}s. Write one {mark} where each {self.kind} stands"
            )
        return [turn for turn in turns if turn.role != "system" or turn.text.strip()]

    def _turn(self, entry: Any, where: str, layout: Layout) -> Turn:
        if isinstance(entry, dict) and layout.role not in entry:
            layout = next((other for other in LAYOUTS if other.role in entry), layout)
        if not isinstance(entry, dict) or layout.role not in entry or layout.text not in entry:
            raise ValueError(
                f"{where}: expected an object with {layout.role!r} and {layout.text!r}, got "
                f"{shown(entry)}"
            )
        fields = Fields(entry, where, self.media.unused, layout.column)
        written, content = fields.raw(layout.role), rows_of(fields.raw(layout.text))
        role = ROLES.get(written) if isinstance(written, str) else None
        if role is None:
            raise ValueError(
                f"{where}: {layout.role!r} must be one of {', '.join(ROLES)}, got {shown(written)}"
            )
        learned = _learned(fields.take(*LEARNED), role, where)
        if isinstance(content, str):
            pieces = self._marked(content) if role == "user" else [content]
        elif isinstance(content, list) and layout.text == "content":
            pieces = self._parts(content, role, where)
        else:
            kinds = "text or a list of parts" if layout.text == "content" else "text"
            raise ValueError(f"{where}: {layout.text!r} must be {kinds}, got {shown(content)}")
        fields.close()
        return Turn(role, self._texts(pieces), learned)

    def _marked(self, text: str) -> list[str | Visual]:
        mark = VIDEO_MARK if self.kind == "video" and VIDEO_MARK in text else IMAGE_MARK
        first, *rest = text.split(mark)
        pieces: list[str | Visual] = [first]
        for following in rest:
            pieces += [self._next(), following]
        return pieces

    def _next(self) -> Visual:
        """The next of `visuals`; nothing beyond the last, which `read` refuses in the end."""
        self._claimed += 1
        return self.visuals[self._claimed - 1] if self._claimed <= len(self.visuals) else ()

    def _parts(self, parts: Sequence[Any], role: Role, where: str) -> list[str | Visual]:
        pieces: list[str | Visual] = []
        for number, part in enumerate(parts):
            pieces += ["\n"] * (number > 0)
            pieces.append(self._part(part, role, f"{where}, part {number}"))
        return pieces

    def _part(self, part: Any, role: Role, where: str) -> str | Visual:
        if not isinstance(part, dict):
            raise ValueError(
                f"{where}: expected a part with type text, image or video, got {shown(part)}"
            )
        fields = Fields(part, where, self.media.unused, "content")
        kind = fields.raw("type")
        if kind == "text" and isinstance(text := fields.raw("text"), str):
            fields.close()
            return text
        if kind not in ("image", "image_url", "video"):
            raise ValueError(
                f"{where}: expected a part with type text, image or video, got {shown(part)}"
            )
        if role != "user":
            raise ValueError(
                f"{where}: a part of type {kind} in the {role}'s message; only users show images"
            )
        return self._video(fields) if kind == "video" else self._image(fields)

    def _image(self, fields: Fields) -> Visual:
        value = fields.take("image", "image_url", "url", "path")
        if isinstance(value, dict) and "url" in value:
            address = Fields(value, fields.where, self.media.unused, "image_url")
            value = address.take("url")
            address.close(has_media=True)
        fields.close(has_media=is_given(value))
        if is_given(value):
            return (self.media.image(value),)
        if self.kind == "video":
            raise ImageMarksError(
                f"{fields.where}: holds a part of type image, but the record names no image"
            )
        return self._next()

    def _video(self, fields: Fields) -> Visual:
        value, number = fields.take("video", "url", "path"), fields.take("num_frames")
        fields.close(strict=True)
        if isinstance(value, str | bytes) and number is not None:
            value = {"path" if isinstance(value, str) else "bytes": value, "num_frames": number}
        if is_given(value):
            return self.media.video(value)
        if self.kind != "video":
            raise ImageMarksError(
                f"{fields.where}: holds a part of type video, but the record names no video"
            )
        return self._next()

    def _texts(self, pieces: Sequence[str | Visual]) -> tuple[str, ...]:
        """The texts around the images of `pieces`; frames of a video stand on lines of their
        own.
        """
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


def _learned(value: Any, role: Role, where: str) -> bool:
    """Weight that a turn says; by default answers are learned."""
    if value is None:
        return True
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise ValueError(
            f"{where}: the weight of a turn must be 0 (not learned) or 1 (learned), got "
            f"{shown(value)}; other weights "
            "belong to a source: `weight` in the recipe"
        )
    if value and role != "assistant":
        raise ValueError(
            f"{where}: asks to learn what the {role} says; only answers of the "
            "assistant are learned"
        )
    return bool(value) or role != "assistant"


def system_turn(system: Any, turns: Sequence[Turn], where: str) -> list[Turn]:
    """The turns with the system prompt that a record names beside them."""
    if system is None:
        return list(turns)
    if not isinstance(system, str):
        raise ValueError(f"{where}: 'system' must be text, got {shown(system)}")
    if turns and turns[0].role == "system":
        raise ValueError(
            f"{where}: has a system prompt under 'system' and another as its first "
            "turn; keep one of them"
        )
    return [Turn("system", system), *turns]


def rows_of(value: Any) -> Any:
    """A list of objects, where lists under each key of one object stand for it (as
    `datasets.Sequence` once gave them).
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
