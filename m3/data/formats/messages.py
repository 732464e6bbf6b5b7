"""Chat messages as transformers and Aria write them become a `Sample`; their mistakes become sentences.

[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, {"role": "assistant", ...}]

Content is a list of parts or a string. Parts are joined by newlines, as the chat template does it when the model is used
(m3/processing/chat_template.py).
"""

from typing import Any

from m3.data.formats.record import ROLES, shown
from m3.data.sample import IMAGE_MARK, Sample, Turn


def sample_from_messages(
    messages: Any, images: tuple[str | bytes, ...], where: str, id: str, frames: int | None = None
) -> Sample:
    """Check `messages` and convert them.

    Args:
        messages: the decoded list.
        images: of the sample, in reading order.
        where: file and record, for messages of errors.
        id: of the sample.
        frames: what a part `{"type": "video"}` stands for: so many of `images`; None where there is no video.

    Raises:
        ValueError: anything missing or of the wrong kind; the text begins with `where`.
    """
    if not isinstance(messages, list):
        raise ValueError(f"{where}: 'messages' must be a list of messages, got {shown(messages)}")
    turns = tuple(_turn(message, f"{where}, message {number}", frames) for number, message in enumerate(messages))
    try:
        return Sample(id, images, turns)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None


def _turn(message: Any, where: str, frames: int | None) -> Turn:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise ValueError(f"{where}: expected an object with 'role' and 'content', got {shown(message)}")
    role = ROLES.get(message["role"]) if isinstance(message["role"], str) else None
    if role is None:
        raise ValueError(f"{where}: 'role' must be user or assistant, got {shown(message['role'])}")
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, content)
    if not isinstance(content, list):
        raise ValueError(f"{where}: 'content' must be text or a list of parts, got {shown(content)}")
    return Turn(role, "\n".join(_part(part, role, where, frames) for part in content))


def _part(part: Any, role: str, where: str, frames: int | None) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "video") and role == "assistant":
        raise ValueError(f"{where}: an assistant's message holds {kind}; only users show images")
    if kind == "image":
        return IMAGE_MARK
    if kind == "video" and frames is not None:
        return "\n".join([IMAGE_MARK] * frames)
    if kind == "video":
        raise ValueError(f"{where}: holds a part of type video, but the record names no video")
    raise ValueError(f"{where}: expected a part with type text, image or video, got {shown(part)}")
