"""One record in LLaVA's columns (`id`, `image`, `conversations`) becomes a `Sample`; its mistakes become sentences."""

from pathlib import Path
from typing import Any, Literal

from m3.data.sample import Sample, Turn

ROLES: dict[str, Literal["user", "assistant"]] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
}


def sample_from_record(record: Any, where: str, default_id: str, image_folder: Path | None) -> Sample:
    """Check `record` and convert it.

    Args:
        record: a decoded JSON object or parquet row.
        where: file and record number, for messages.
        default_id: for records without an id.
        image_folder: what relative image paths are relative to.

    Raises:
        ValueError: anything missing or of the wrong kind; the text begins with `where`.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with id, image and conversations, got {type(record).__name__}")
    conversations = record.get("conversations")
    if not isinstance(conversations, list):
        raise ValueError(f"{where}: 'conversations' must be a list of turns, got {shown(conversations)}")
    turns = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(conversations))
    name = record.get("id")
    try:
        return Sample(
            default_id if name is None else str(name), images_of(record.get("image"), where, image_folder), turns
        )
    except ValueError as error:
        raise error if str(error).startswith(where) else type(error)(f"{where}: {error}") from None


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise ValueError(f"{where}: expected an object with 'from' and 'value', got {shown(turn)}")
    role = ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise ValueError(f"{where}: 'from' must be one of {', '.join(ROLES)}, got {shown(turn['from'])}")
    if not isinstance(turn["value"], str):
        raise ValueError(f"{where}: 'value' must be text, got {shown(turn['value'])}")
    return Turn(role, turn["value"])


def images_of(images: Any, where: str, folder: Path | None) -> tuple[str | bytes, ...]:
    """What stands under `image` in a record: nothing, one image or a list; paths relative to `folder`, `data:` as it is."""
    if images is None:
        return ()
    entries = images if isinstance(images, list) else [images]
    return tuple(_image(entry, where, folder) for entry in entries)


def _image(image: Any, where: str, folder: Path | None) -> str | bytes:
    """A path as text, or the encoded bytes. Parquet stores `{bytes, path}` (the form of `datasets.Image`)."""
    if isinstance(image, dict):
        if isinstance(image.get("bytes"), bytes):
            return image["bytes"]
        image = image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image:
        return image if folder is None or image.startswith("data:") else str(folder / image)
    raise ValueError(f"{where}: 'image' must be a path, encoded bytes, a list of these or absent, got {shown(image)}")


def shown(value: Any) -> str:
    """For messages: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
