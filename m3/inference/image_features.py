"""Pictures to features, once: everything that a later prompt, at any scale, needs to know of them.

In: the model, the processor, pictures (stills, or the frames of a video). Out: `Seen`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from m3.model import M3ForConditionalGeneration
from m3.nesting import Tiles
from m3.processing import ImageSource, M3Processor, TiledImages
from m3.processing.images import MAX_PIXELS
from m3.processing.tiles import tile_entries

BATCH = 16
"""Pictures that the tower sees at a time."""


@dataclass(frozen=True)
class Seen:
    """A still, or a video frame by frame. `name` and `about` describe it to the user."""

    name: str
    about: str
    tiles: tuple[Tiles, ...]  # of each picture
    # of each picture: the connector's tokens, before nesting
    features: tuple[Float[Tensor, "t n d"], ...]

    @property
    def number_of_tiles(self) -> int:
        return sum(tiles.number for tiles in self.tiles)


def prepare(
    processor: M3Processor, pictures: Sequence[ImageSource], max_pixels: int = MAX_PIXELS
) -> Iterator[TiledImages]:
    """What the tower takes, `BATCH` pictures at a time."""
    for start in range(0, len(pictures), BATCH):
        yield processor.prepare_images(pictures[start : start + BATCH], max_pixels)


@torch.no_grad()
def look(model: M3ForConditionalGeneration, prepared: TiledImages) -> list[Float[Tensor, "t n d"]]:
    """Tower and connector, once. The tokens of each picture, before nesting."""
    mask = None if prepared.pixel_mask is None else prepared.pixel_mask.to(model.device)
    tokens = model.get_image_features(prepared.pixel_values.to(model.device), mask).pooler_output
    assert tokens is not None  # get_image_features always gives it
    parts = tokens.split([one.number for one in prepared.images])
    return [part[:, : one.tokens] for part, one in zip(parts, prepared.images, strict=True)]


def see(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    name: str,
    about: str,
    pictures: Sequence[Image.Image],
) -> Seen:
    """Tower and connector, each picture once, `BATCH` at a time."""
    tiles: list[Tiles] = []
    features: list[Tensor] = []
    for prepared in prepare(processor, pictures):
        tiles += prepared.images
        features += look(model, prepared)
    return Seen(name, about, tuple(tiles), tuple(features))


def together(parts: Sequence[Float[Tensor, "_ n d"]]) -> Float[Tensor, "t m d"]:
    """The tiles of several pictures as the model takes them: padded at the end to the most
    tokens.
    """
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def image_inputs(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    shown: Sequence[Seen],
    scales: Sequence[int],
) -> dict[str, Tensor]:
    """What `forward` and `generate` take instead of pixels; `scales`: one per picture, in
    reading order.
    """
    if not shown:
        return {}
    features = [part for one in shown for part in one.features]
    known = tile_entries([tiles for one in shown for tiles in one.tiles], processor.reader.tiling)
    inputs = known | {"image_scales": torch.tensor(list(scales), dtype=torch.int64)}
    return {name: tensor.to(model.device) for name, tensor in inputs.items()} | {
        "image_features": together(features)
    }


def reading_order(text: str, marks: Sequence[str]) -> Iterator[str]:
    """`text` cut at the marks, the marks kept: text, mark, text, mark, text."""
    start = 0
    while start <= len(text):
        found = [(at, mark) for mark in marks if (at := text.find(mark, start)) >= 0]
        if not found:
            yield text[start:]
            return
        at, mark = min(found)
        yield text[start:at]
        yield mark
        start = at + len(mark)
