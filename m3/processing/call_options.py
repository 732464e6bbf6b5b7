"""Keyword arguments of a processor call: typed as transformers wants them, and strict where it
would only warn.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from m3.nesting import SCALE_OPTION, Budget, read_budget


class M3ImagesKwargs(ImagesKwargs, total=False):
    """Options of one call for reading images.

    Attributes:
        matryoshka_vis_token_scale: visual tokens per image, 36, or tokens at a resolution in
            pixels, "36@48": one for all, one per image, or None (the largest trained).
        max_pixels: larger images are refused by their header.
        fetch_urls: open `http(s)` addresses.
        max_image_size: where a model reads tiles of several sizes (Aria: 490 or 980 pixels), their
            side: one number for all images, one per image, or None (the processor's own).
        split_image: there, whether an image is cut into tiles: for all images, for each, or None
            (the processor's own).
    """

    matryoshka_vis_token_scale: int | str | list[int | str] | None
    max_pixels: int
    fetch_urls: bool
    max_image_size: int | list[int] | None
    split_image: bool | list[bool] | None


class M3ProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of a call, in transformers' typed form: flat, or grouped in
    `text_kwargs`, `images_kwargs`.
    """

    images_kwargs: M3ImagesKwargs  # pyright: ignore[reportIncompatibleVariableOverride]


OWN_IMAGE_OPTIONS = (SCALE_OPTION, "max_pixels", "fetch_urls", "max_image_size", "split_image")
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
FLAT_OPTIONS = ("return_mm_token_type_ids", "return_text_replacement_offsets")


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """A `ValueError` with the nearest known name for any keyword that nothing would read."""
    known_names = {*TextKwargs.__annotations__, *OWN_IMAGE_OPTIONS, *GROUPS, *FLAT_OPTIONS}
    for name in kwargs:
        if name not in known_names:
            _unknown(name, known_names, "")
    for name in kwargs.get("text_kwargs", {}):
        if name not in TextKwargs.__annotations__:
            _unknown(name, TextKwargs.__annotations__, " in text_kwargs")
    for name in kwargs.get("images_kwargs", {}):
        if name not in OWN_IMAGE_OPTIONS:
            _unknown(name, OWN_IMAGE_OPTIONS, " in images_kwargs")
    for name in kwargs.get("common_kwargs", {}):
        if name not in known_names or name in GROUPS:
            _unknown(name, known_names, " in common_kwargs")


def plain_numbers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same call with scales and sizes as the plain numbers and lists that transformers checks
    for.

    NumPy's and torch's whole numbers, arrays and tuples of them are taken for what they say.

    Raises:
        ValueError: a scale or size that is no whole number.
    """
    plain = dict(kwargs)
    for name, read in (("max_image_size", whole_numbers), (SCALE_OPTION, budget_settings)):
        if plain.get(name) is not None:
            plain[name] = read(name, plain[name])
    for group in ("images_kwargs", "common_kwargs"):
        if group in plain:
            plain[group] = plain_numbers(plain[group])
    return plain


def whole_numbers(name: str, given: Any) -> int | list[int]:
    """The values that a call gave as `name` as plain numbers; a `ValueError` where one is none."""
    values = given.tolist() if isinstance(given, np.ndarray | np.generic | Tensor) else given
    several = list(values) if isinstance(values, list | tuple) else [values]
    numbers: list[Any] = [
        item.tolist() if isinstance(item, np.generic | Tensor) else item for item in several
    ]
    if not all(type(item) is int for item in numbers):
        raise ValueError(
            f"{name} must be a whole number, or a list of one per image; got {given!r}"
        )
    return numbers if isinstance(values, list | tuple) else numbers[0]


def budget_settings(name: str, given: Any) -> int | str | list[int | str]:
    """The budgets that a call gave as `name`, as files write them; a `ValueError` where one is
    none.
    """
    if isinstance(given, str | Budget):
        return read_budget(given).setting
    if isinstance(given, list | tuple) and any(isinstance(item, str | Budget) for item in given):
        numbers = [
            item if isinstance(item, str | Budget) else whole_numbers(name, item) for item in given
        ]
        return [read_budget(number).setting for number in numbers]  # pyright: ignore[reportArgumentType] (of one item)
    return whole_numbers(name, given)  # pyright: ignore[reportReturnType] (whole numbers are settings)


def per_image(name: str, given: Any, number: int) -> list[Any]:
    """The values that a call gave as `name`, one or one per image, for each of `number` images."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [given] * number
    if len(given) != number:
        raise ValueError(
            f"{name} has {len(given)} entries for {number} images. Give one for all images, or one "
            "per image in reading order"
        )
    return list(given)


def _unknown(name: str, known_names: Iterable[str], place_note: str) -> NoReturn:
    close = difflib.get_close_matches(name, list(known_names), n=1)
    if name in ImagesKwargs.__annotations__:
        hint = "; how images are resized and normalised belongs to the model: set it on processor.image_processor"
    else:
        hint = (
            f"; did you mean {close[0]!r}?"
            if close
            else f"; images are controlled by {', '.join(OWN_IMAGE_OPTIONS)}"
        )
    raise ValueError(f"M3Processor got an unknown keyword {name!r}{place_note}{hint}")
