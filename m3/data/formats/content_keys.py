"""Keys of a record that hold content: what a model would see or learn, or what says how it is
learned.

A key is split into words (`videoPaths` -> video, path). It holds content if one of them is in
`CONTENT` and none in `FACTS`, which speak about content (`image_id`, `text_length`); or if a key of
an object under it does. Whatever its name, a media file is content, and so is the path of one in a
record that shows nothing else.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
VIDEO_SUFFIXES = ("mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg", "mpeg", "flv", "ogv", "wmv")
AUDIO_SUFFIXES = ("wav", "mp3", "flac", "ogg", "m4a", "opus", "aac")
TEXT_SUFFIXES = ("txt", "json", "jsonl", "caption", "md")

IMAGES = frozenset({"image", "img", "picture", "pic", "photo"})
MEDIA = IMAGES | frozenset(
    {
        *("thumbnail", "pixel", "base64"),
        *("video", "movie", "frame", "mp4"),
        *("audio", "sound", "speech", "voice", "wav", "mp3"),
    }
)
CONTENT = MEDIA | frozenset(
    {
        *("text", "caption", "conversation", "message", "turn", "dialog", "dialogue", "history"),
        *("question", "answer", "query", "response", "prompt", "completion", "instruction"),
        *(
            "passage",
            "knowledge",
            "transcript",
            "subtitle",
            "ocr",
            "pdf",
            "persona",
            "target",
            "solution",
        ),
        *("code", "document", "body", "description", "summary", "translation"),
        *("input", "output", "content", "value", "hint", "context", "choice", "option"),
        *("chosen", "rejected", "reasoning", "thinking", "thought", "rationale", "explanation"),
        *("system", "tool", "function"),
        *(
            "weight",
            "loss",
            "train",
            "training",
            "trained",
            "trainable",
            "learn",
            "learned",
            "mask",
        ),
    }
)
REFERENCES = frozenset({"url", "uri", "link", "path", "file", "filename", "name"})
"""Words for where something is.

In a record that shows an image they say where it came from; in any other they are its only trace.
"""
FACTS = frozenset(
    {
        *(
            "id",
            "uid",
            "uuid",
            "key",
            "index",
            "idx",
            "hash",
            "sha",
            "md5",
            "phash",
            "checksum",
            "digest",
            "version",
        ),
        *("width", "height", "size", "shape", "length", "len", "count", "num", "number", "token"),
        *("aspect", "ratio", "resolution", "dimension", "dim", "duration", "fps"),
        *(
            "min",
            "max",
            "mean",
            "avg",
            "std",
            "score",
            "similarity",
            "sim",
            "rating",
            "quality",
            "correspondence",
        ),
        *(
            "source",
            "origin",
            "dataset",
            "split",
            "license",
            "date",
            "time",
            "timestamp",
            "lang",
            "language",
            "model",
        ),
        *(
            "format",
            "type",
            "kind",
            "ext",
            "extension",
            "class",
            "category",
            "meta",
            "metadata",
            "status",
            "error",
        ),
    }
)
_WORD_PATTERN = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")
_FIRST_BYTES = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P6"),
    *(b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"ID3", b"\xff\xfb", b"FLV", b"\0\0\0\x0cjP"),
)
"""First bytes of files of images, videos and sounds."""
_KNOWN_WORDS = CONTENT | REFERENCES | FACTS


def holds_content(key: str, value: Any, has_media: bool) -> bool:
    """Tell whether leaving the key out would leave content out.

    Args:
        key: its name.
        value: what it says; not empty.
        has_media: whether the record shows an image or a video.
    """
    words = _key_words(key)
    if _holds_media(value) or (not has_media and _names_media_file(value)):
        return True
    if not words.isdisjoint(FACTS):
        return False
    if words.isdisjoint(CONTENT):
        return any(
            holds_content(name, entry, has_media)
            for name, entry in _entries(value)
            if is_present(entry)
        )
    tells_origin = (
        has_media and words.isdisjoint(CONTENT - IMAGES) and not words.isdisjoint(REFERENCES)
    )
    return not tells_origin


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys of an object, or of all objects in a list."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _entries(entry)


def is_present(value: Any) -> bool:
    """Tell whether a value says anything.

    Null, NaN, empty ones, and lists or objects of nothing else do not.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, str | bytes):
        return bool(value)
    if isinstance(value, Mapping):
        return any(is_present(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(is_present(entry) for entry in value)
    return True


def is_content_file(suffix: str) -> bool:
    """Tell whether a member of a tar that ends so is a medium or a text."""
    return suffix.rpartition(".")[2] in (
        *IMAGE_SUFFIXES,
        *VIDEO_SUFFIXES,
        *AUDIO_SUFFIXES,
        *TEXT_SUFFIXES,
    )


@functools.lru_cache(maxsize=4096)
def _key_words(key: str) -> frozenset[str]:
    """Words of a key in lower case and the singular.

    Digits behind a word belong to it only where that is a word of its own (mp3).
    """
    words = {word.lower() for word in _WORD_PATTERN.findall(key)}
    plain_words = {word if word in _KNOWN_WORDS else word.rstrip("0123456789") for word in words}
    return frozenset(piece for word in plain_words for piece in _split_word(_singular(word)))


def _split_word(word: str) -> tuple[str, ...]:
    """`imagepath` as image and path; any other word unchanged."""
    if word not in _KNOWN_WORDS:
        for start in CONTENT:
            if word.startswith(start) and (ending := _singular(word[len(start) :])) in _KNOWN_WORDS:
                return start, ending
    return (word,)


def _singular(word: str) -> str:
    if word in _KNOWN_WORDS or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word.removesuffix("s")


def _holds_media(value: Any) -> bool:
    """Tell whether a value is a file in bytes or a `data:` address, at any depth.

    Bytes are a file as `datasets` writes media, or by how they begin.
    """
    if isinstance(value, str):
        return value.startswith("data:")
    if isinstance(value, Mapping):
        return bool(value.get("bytes")) or any(map(_holds_media, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_media, value))
    return isinstance(value, bytes) and (value.startswith(_FIRST_BYTES) or value[4:8] == b"ftyp")


def _names_media_file(value: Any) -> bool:
    """Tell whether a value is the path of an image, a video or a sound.

    Addresses on the network are where a text came from.
    """
    if isinstance(value, list | tuple):
        return any(map(_names_media_file, value))
    if not isinstance(value, str) or ("://" in value and not value.startswith("file:")):
        return False
    stem, dot, suffix = value.rpartition(".")
    return bool(stem and dot) and suffix.lower() in (
        *IMAGE_SUFFIXES,
        *VIDEO_SUFFIXES,
        *AUDIO_SUFFIXES,
    )
