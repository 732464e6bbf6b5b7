"""Inference from a checkpoint: loading, conversations about images and videos, cost of a scale.

Names are imported when they are first asked for, so that the help text of `m3 chat` waits for no
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3.hardware import choose_device
    from m3.inference.conversation import Answer, Conversation, Generation
    from m3.inference.loading import load
    from m3.inference.question import ask

_HOMES = {
    "Answer": "conversation",
    "Conversation": "conversation",
    "Generation": "conversation",
    "ask": "question",
    "choose_device": "loading",
    "load": "loading",
}
"""Name -> the file that it is imported from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]


__all__ = ["Answer", "Conversation", "Generation", "ask", "choose_device", "load"]
