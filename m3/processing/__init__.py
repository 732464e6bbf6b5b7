"""Bytes to tensors: images made square and normalised, prompts with the exact number of placeholders."""

from m3.processing.images import ImageSource, load_image, pad_to_square, preprocess_images
from m3.processing.processor import M3Processor, expand_image_tokens

__all__ = ["ImageSource", "M3Processor", "expand_image_tokens", "load_image", "pad_to_square", "preprocess_images"]
