"""Texts and captioned images become a `Document`, all of whose text is learned."""

from m3.config import describe
from m3.data.formats.fields import RecordFields, UnusedKeys, shorten
from m3.data.formats.readers.files import parse_json
from m3.data.formats.readers.tar_index import Member
from m3.data.formats.readers.tars import SCORE_KEYS, TarRecord
from m3.data.formats.record import Record, RecordParser
from m3.data.formats.settings import SourceSettings
from m3.data.sample import Document


def parse_text(record: Record, settings: SourceSettings) -> Document:
    """{"text": "...", "id": optional}: a document without images."""
    parser = RecordParser(record, settings, expected="an object with 'text'")
    text = parser.fields.read_raw("text")
    if not isinstance(text, str):
        raise ValueError(
            f"{record.location}: expected an object with 'text', got "
            f"{', '.join(record.content) or 'an empty object'}"
        )
    return parser.make_document([text], [])


def parse_captioned(record: Record, settings: SourceSettings) -> Document:
    """{"text" | "caption", "image" | "images"}: the images, or none, and then the text."""
    parser = RecordParser(record, settings)
    text = parser.fields.read_one("text", "caption")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{record.location}: 'text' must be text, got {shorten(text)}")
    images = parser.read_images()
    return parser.make_document([*("" for _ in images), text or ""], images)


def parse_caption(record: TarRecord, settings: SourceSettings) -> Document:
    """The image `k.jpg`, then its caption: `k.txt`, or "caption" of `k.json`.

    Where both hold the caption, they must agree.
    """
    group, location = record.group, record.location
    unused = UnusedKeys(frozenset(settings.ignore or ()))
    images = _without_ignored(group.image_members(), unused)
    if len(images) != 1:
        raise ValueError(f"{location}: expected one image, got {len(images)} ({group.member_list})")
    text_members = _without_ignored(group.members_of_kind("txt"), unused)[:1]
    json_members = _without_ignored(group.members_of_kind("json"), unused)[:1]
    captions = [_read_text(record, member) for member in text_members]
    for member in json_members:
        captions += _read_json_caption(record, member, settings, unused, bool(text_members))
    if not captions:
        raise ValueError(
            f"{location}: has no caption; expected a .txt or a .json member ({group.member_list})"
        )
    if captions[0] != captions[-1]:
        raise ValueError(
            f"{location}: its .txt and its .json have different captions; keep one of them, or "
            "list 'txt' or 'caption' under the source's `ignore`"
        )
    image = record.read_member(images[0])
    record.close(unused)
    try:
        return Document(group.key, (image,), ("", captions[0]), tuple(unused.keys))
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def _without_ignored(members: list[Member], unused: UnusedKeys) -> list[Member]:
    return [member for member in members if not unused.ignores(member.suffix, member.kind)]


def _read_text(record: TarRecord, member: Member) -> str:
    try:
        return record.read_member(member).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{record.location}: not UTF-8 text ({error})") from error


def _read_json_caption(
    record: TarRecord, member: Member, settings: SourceSettings, unused: UnusedKeys, has_text: bool
) -> list[str]:
    """The caption of a `.json`; none where a `.txt` holds it alone."""
    content = parse_json(record.read_member(member), record.location)
    if not isinstance(content, dict):
        raise ValueError(
            f"{record.location}: expected an object with 'caption', got {describe(content)}"
        )
    fields = RecordFields(content, record.location, unused)
    caption = fields.read_one("caption")
    if settings.filters is not None and settings.filters.min_similarity is not None:
        for score_key in SCORE_KEYS:
            fields.read_raw(score_key)  # the filters read it
    if not isinstance(caption, str) and (caption is not None or not has_text):
        keys = ", ".join(content) or "an empty object"
        raise ValueError(f"{record.location}: expected an object with 'caption', got {keys}")
    fields.close(has_media=True)
    return [] if caption is None else [caption.strip()]
