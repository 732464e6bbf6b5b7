"""Interleaved text and images become a `Document`, in reading order."""

from collections.abc import Sequence
from typing import Any

from m3.data.formats.fields import RecordFields, shorten
from m3.data.formats.media import ImageFile
from m3.data.formats.record import Record, RecordParser
from m3.data.formats.settings import SourceSettings
from m3.data.sample import Document

_TEXT_LIST = "an object with 'text_list' (texts) and 'image_info' (a list)"
_SLOTS = "an object with 'texts' and 'images', lists of one length"


def parse_text_list(record: Record, settings: SourceSettings) -> Document:
    """MMC4's records: sentences, and for each image the sentence that it belongs to.

    {"text_list": ["First sentence.", "Second."],
     "image_info": [{"image_name": "a.jpg", "matched_text_index": 1}]}

    Each image stands before the sentence it was matched to, several in the order of the list. Other
    keys (`raw_url`, `matched_sim`, `similarity_matrix` ...) are not used; content among them is
    refused.
    """
    parser = RecordParser(record, settings, expected=_TEXT_LIST)
    sentences, entries = parser.fields.read_raw("text_list"), parser.fields.read_raw("image_info")
    if (
        not isinstance(sentences, list)
        or not isinstance(entries, list)
        or not all(isinstance(sentence, str) for sentence in sentences)
    ):
        raise ValueError(
            f"{record.location}: expected {_TEXT_LIST}, got {shorten(parser.fields.values)}"
        )
    images_before: list[list[ImageFile]] = [[] for _ in sentences]
    for number, entry in enumerate(entries):
        location = f"{record.location}, image {number}"
        image, sentence_index = _read_entry(entry, len(sentences), location, parser)
        images_before[sentence_index].append(image)
    slots: list[tuple[str | None, ImageFile | None]] = []
    for images, sentence in zip(images_before, sentences, strict=True):
        slots += [*((None, image) for image in images), (sentence, None)]
    return _make_document(parser, slots)


def parse_slots(record: Record, settings: SourceSettings) -> Document:
    """Slots in reading order, each a text or an image.

    {"texts": [null, "A cat.", null], "images": ["0.jpg", null, "1.jpg"]}

    These are the keys of mllm-npu's pickled shards, with names in the place of base64 text.
    """
    parser = RecordParser(record, settings, expected=_SLOTS)
    texts, names = parser.fields.read_raw("texts"), parser.fields.read_raw("images")
    if not isinstance(texts, list) or not isinstance(names, list) or len(texts) != len(names):
        raise ValueError(
            f"{record.location}: expected {_SLOTS}, got {shorten(parser.fields.values)}"
        )
    for number, (text, name) in enumerate(zip(texts, names, strict=True)):
        value = name if text is None else text
        if (text is None) == (name is None) or not isinstance(value, str):
            raise ValueError(
                f"{record.location}: slot {number} must hold a text or the name of an image, the "
                f"other null; got {shorten(text)} and {shorten(name)}"
            )
    images = [
        None if name is None else record.resolve(name, settings.image_folder) for name in names
    ]
    return _make_document(parser, list(zip(texts, images, strict=True)))


def _read_entry(
    entry: Any, num_sentences: int, location: str, parser: RecordParser
) -> tuple[ImageFile, int]:
    """An image, and the index of the sentence that it stands before."""
    values = entry if isinstance(entry, dict) else {}
    fields = RecordFields(values, location, parser.unused, "image_info")
    name, index = fields.read_raw("image_name"), fields.read_raw("matched_text_index")
    if (
        not isinstance(name, str)
        or not name
        or type(index) is not int
        or not 0 <= index < num_sentences
    ):
        raise ValueError(
            f"{location}: expected 'image_name' and a 'matched_text_index' from 0 to "
            f"{num_sentences - 1}, got {shorten(entry)}"
        )
    fields.close(has_media=True)
    return parser.media.read_image(name), index


def _make_document(
    parser: RecordParser, slots: Sequence[tuple[str | None, ImageFile | None]]
) -> Document:
    """The document; neighbouring texts are joined by one space, as sentences are."""
    texts: list[list[str]] = [[]]
    images: list[ImageFile] = []
    for text, image in slots:
        if image is not None:
            images.append(image)
            texts.append([])
        elif text is not None and text.strip():
            texts[-1].append(text.strip())
    return parser.make_document([" ".join(sentences) for sentences in texts], images)
