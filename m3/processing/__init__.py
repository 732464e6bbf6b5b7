"""Bytes to tensors: images cut and normalised, prompts with the exact number of placeholders.

Names are imported when they are first asked for, so that a command line with a scale in it is read
without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3.processing.images import ImageSource, image_size, load_image, pad_to_square
    from m3.processing.processor import M3Processor, expand_image_tokens
    from m3.processing.tiles import TiledImages, prepare_images

_HOMES = {
    "ImageSource": "images",
    "M3Processor": "processor",
    "TiledImages": "tiles",
    "expand_image_tokens": "processor",
    "image_size": "images",
    "load_image": "images",
    "pad_to_square": "images",
    "prepare_images": "tiles",
}
"""Name -> the file that it is imported from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]


__all__ = [
    "ImageSource",
    "M3Processor",
    "TiledImages",
    "expand_image_tokens",
    "image_size",
    "load_image",
    "pad_to_square",
    "prepare_images",
]
