"""Image inputs of `forward`, in one object that knows how many tokens each placeholder span has.

in:  tensors as the processor, the collator or a user give them (`ImageInputs`);
out: per image its `Tiles`, per placeholder span a `Span`: the scale, the image it shows, the number
    of its placeholders.
"""

from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m3.nesting import Budget, ImageReader, Tiles


@dataclass(frozen=True)
class Span:
    """One stretch of placeholders."""

    scale: int
    image: int
    count: int
    resolution: int | None = None

    @property
    def budget(self) -> Budget:
        """How the image is seen and read there."""
        return Budget(self.scale, self.resolution)


@dataclass(frozen=True)
class ImageInputs:
    """The images of a batch: `i` images in `t` tiles, image after image, shown in `s`
    placeholder spans, in reading order.
    """

    pixel_values: Float[Tensor, "t c h w"] | None = None
    """Tiles to be seen."""
    image_features: Float[Tensor, "t n d"] | None = None
    """Or what was seen of them before (`get_image_features(...).pooler_output`)."""
    image_scales: Int[Tensor, " s"] | None = None
    """Visual tokens per tile, the scale of each span."""
    image_index: Int[Tensor, " s"] | None = None
    """Which image each span shows. Absent: the spans show the images in order, one each."""
    image_tiles: Int[Tensor, " i"] | None = None
    """Tiles of each image. Absent: one each."""
    image_sizes: Int[Tensor, "i 2"] | None = None
    """(height, width) in pixels of each image as it came, where the tiling needs it (`anyres`)."""
    tile_tokens: Int[Tensor, " i"] | None = None
    """Tokens that the connector gives per tile of each image, where that varies, 0 for as many as
    of a tile of the encoder's own size; what is behind them is padding.
    """
    pixel_mask: Bool[Tensor, "t h w"] | None = None
    """Which pixels are no padding, where tiles have several sizes or shapes."""
    image_resolutions: Int[Tensor, " i"] | None = None
    """Resolution that each image is seen at, in pixels; 0 is the largest. Absent: all at that."""

    @property
    def number_of_tiles(self) -> int:
        """Tiles of all images; 0 without images."""
        tile_tensor = self.pixel_values if self.image_features is None else self.image_features
        return 0 if tile_tensor is None else len(tile_tensor)

    def images(self) -> list[Tiles]:
        """Tiles of each image.

        Raises:
            ValueError: tensors that do not speak of the same number of images or tiles.
        """
        tiles = (
            [1] * self.number_of_tiles if self.image_tiles is None else self.image_tiles.tolist()
        )
        if sum(tiles) != self.number_of_tiles:
            raise ValueError(
                f"image_tiles {tiles} are {sum(tiles)} tiles, but "
                f"{self.number_of_tiles} tiles were given"
            )
        sizes = (
            [None] * len(tiles)
            if self.image_sizes is None
            else [(h, w) for h, w in self.image_sizes.tolist()]
        )
        tokens = (
            [None] * len(tiles)
            if self.tile_tokens is None
            else [count or None for count in self.tile_tokens.tolist()]
        )
        resolutions = (
            [None] * len(tiles)
            if self.image_resolutions is None
            else [side or None for side in self.image_resolutions.tolist()]
        )
        if not len(tiles) == len(sizes) == len(tokens) == len(resolutions):
            raise ValueError(
                f"{len(tiles)} images by image_tiles, {len(sizes)} by image_sizes, {len(tokens)} "
                f"by tile_tokens, {len(resolutions)} by image_resolutions: one of each per image"
            )
        return [Tiles(*image) for image in zip(tiles, sizes, tokens, resolutions, strict=True)]

    def check_tokens(self, connector_counts: Int[Tensor, " t"], reader: ImageReader) -> None:
        """Check that tiles have as many tokens as the batch says; behind them there is padding,
        which must not be read.

        Raises:
            ValueError: naming both.
        """
        grid = reader.grid if isinstance(reader.grid, int) else reader.grid[0] * reader.grid[1]
        stated_counts = [
            tokens for image in self.images() for tokens in [image.tokens or grid] * image.number
        ]
        if stated_counts != connector_counts.tolist():
            raise ValueError(
                f"the connector makes {connector_counts.tolist()} tokens of the tiles, but by "
                f"tile_tokens they have {stated_counts}: pass tile_tokens as the processor gives it"
            )

    def spans(self, reader: ImageReader) -> list[Span]:
        """Every span with its count.

        Raises:
            ValueError: no scales, an image that does not exist or is not said, a scale that its
                tiles do not reach.
        """
        if self.image_scales is None:
            if self.number_of_tiles:
                raise ValueError(
                    "images were given without image_scales: one scale per placeholder span, in "
                    "reading order"
                )
            return []
        images, scales = self.images(), self.image_scales.tolist()
        if self.image_index is None and len(scales) != len(images):
            raise ValueError(
                f"{len(scales)} placeholder spans but {len(images)} images: image_index must say "
                "which image each span shows"
            )
        span_images = (
            list(range(len(scales))) if self.image_index is None else self.image_index.tolist()
        )
        if len(span_images) != len(scales):
            raise ValueError(
                f"{len(scales)} image_scales but {len(span_images)} image_index: one of each per "
                "span"
            )
        if span_images and not 0 <= min(span_images) <= max(span_images) < len(images):
            raise ValueError(f"image_index spans {span_images}, but there are {len(images)} images")
        return [
            Span(s, i, reader.count(s, images[i]), images[i].resolution)
            for s, i in zip(scales, span_images, strict=True)
        ]

    def behind_cache(
        self, rows: Int[Tensor, "b l"], length: int, image_token_id: int, reader: ImageReader
    ) -> "ImageInputs":
        """The images whose placeholders stand behind the first `length` columns, which a cache
        holds already.

        What is given are the images of all `rows`, or already those behind the cache alone.

        Raises:
            ValueError: images that fit neither, or a cache that ends between the placeholders of
                one image.
        """
        spans, is_image = self.spans(reader), rows == image_token_id
        placeholders_left, span_tokens = (
            int(is_image[:, length:].sum()),
            sum(span.count for span in spans),
        )
        if span_tokens != int(is_image.sum()):
            if span_tokens == placeholders_left:
                return self
            raise ValueError(
                f"the text has {int(is_image.sum())} image placeholders, {placeholders_left} of "
                f"them behind the {length} tokens of the cache, but the images ask for "
                f"{span_tokens}: give the images of the whole text, or those behind the cache"
            )
        columns = torch.where(is_image)[1].tolist()
        ends = list(accumulate(span.count for span in spans))
        remaining_spans = []
        for number, (span, end) in enumerate(zip(spans, ends, strict=True)):
            if not span.count or columns[end - 1] < length:
                continue
            if columns[end - span.count] < length:
                raise ValueError(
                    f"the cache of {length} tokens ends between the {span.count} placeholders of "
                    f"image span {number}: crop "
                    f"{length - columns[end - span.count]} tokens more off it"
                )
            remaining_spans.append(span)
        return self._only(remaining_spans)

    def _only(self, spans: list[Span]) -> "ImageInputs":
        """These spans, and no image that none of them shows."""
        if not spans:
            return ImageInputs()
        assert self.image_scales is not None  # there are spans
        kept_images = sorted({span.image for span in spans})
        tiles = [image.number for image in self.images()]
        ends = list(accumulate(tiles))
        of_tiles = [
            tile for image in kept_images for tile in range(ends[image] - tiles[image], ends[image])
        ]

        def take(tensor: Tensor | None, index: list[int]) -> Tensor | None:
            return None if tensor is None else tensor[torch.tensor(index, device=tensor.device)]

        return ImageInputs(
            pixel_values=take(self.pixel_values, of_tiles),
            image_features=take(self.image_features, of_tiles),
            image_scales=self.image_scales.new_tensor([span.scale for span in spans]),
            image_index=self.image_scales.new_tensor(
                [kept_images.index(span.image) for span in spans]
            ),
            image_tiles=take(self.image_tiles, kept_images),
            image_sizes=take(self.image_sizes, kept_images),
            tile_tokens=take(self.tile_tokens, kept_images),
            pixel_mask=take(self.pixel_mask, of_tiles),
            image_resolutions=take(self.image_resolutions, kept_images),
        )

    def repeated(
        self, rows: Int[Tensor, "b l"], times: int, image_token_id: int, reader: ImageReader
    ) -> dict[str, Tensor]:
        """The tensors for a batch in which every row of `rows` stands `times` times: more spans,
        but no more images.

        Raises:
            ValueError: fewer or more placeholders than the spans ask for.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if not tensors:
            return {}
        spans = self.spans(reader)
        ends = torch.tensor([span.count for span in spans], device=rows.device).cumsum(0)
        row_ends = (rows == image_token_id).sum(1).cumsum(0)
        row_of_span = torch.searchsorted(row_ends, ends).tolist()
        if int(row_ends[-1]) != sum(span.count for span in spans):
            raise ValueError(
                f"the text has {int(row_ends[-1])} image placeholders, but image_scales "
                f"{[span.scale for span in spans]} ask "
                f"for {int(ends[-1])}: {[span.count for span in spans]} per span. Expand each "
                "image to exactly its tokens "
                "(M3Processor does)"
            )
        order = [
            n
            for row in range(len(rows))
            for n in [n for n, r in enumerate(row_of_span) if r == row] * times
        ]
        scales = torch.tensor([spans[n].scale for n in order], device=rows.device)
        index = torch.tensor([spans[n].image for n in order], device=rows.device)
        return tensors | {"image_scales": scales, "image_index": index}


IMAGE_INPUTS = tuple(field.name for field in fields(ImageInputs))
