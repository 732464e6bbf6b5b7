"""Bytes to tensors: images cut and normalised, prompts with the exact number of placeholders."""

from m3.processing.images import ImageSource, image_size, load_image, pad_to_square
from m3.processing.processor import M3Processor, expand_image_tokens
from m3.processing.tiles import TiledImages, prepare_images

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
