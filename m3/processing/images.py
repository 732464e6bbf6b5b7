"""First stop of the image's path: from whatever a user calls an image to pixels.

Comes in: a path, the bytes of a file, a `data:` or `file:` address, or a PIL image. Goes out: a PIL
image, 8-bit RGB and upright (`load_image`), its size alone (`image_size`), or it on a square
(`pad_to_square`: M3 and LLaVA-1.5 pad the short side with the processor's mean colour instead of
cropping). What the encoder sees of it is made in m3/processing/tiles.py.
"""

import base64
import binascii
import functools
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from transformers import BaseImageProcessor

ImageSource = str | Path | bytes | Image.Image

MAX_PIXELS = 64_000_000
"""Largest image that is decoded (8000 x 8000).

Read from the header, before any pixel is allocated.
"""

MAX_SIDE = 8_192
"""Longest side that is padded to a square as it is; a longer one is shrunk to this first.

Otherwise a 1 x 1,000,000 strip, harmless by its own pixel count, would become a square of 10^12
pixels. No encoder sees more than this."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "TGA")
"""Decoders we let an untrusted file choose from (JPEG includes MPO).

Left out on purpose: EPS, which runs Ghostscript, and rarities."""

MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT_S = 20.0

# What PIL's decoders are seen to raise on damaged files; anything else is a bug and must surface.
_STRICT = threading.Lock()
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    NotImplementedError,
)


class TooLargeError(ValueError):
    """A picture of too many pixels.

    `finding` says how many, without what the owner of the limit could do about it.
    """

    def __init__(self, finding: str) -> None:
        super().__init__(f"{finding}. Shrink it, or raise max_pixels if you trust the file")
        self.finding = finding


def load_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, fetch_urls: bool = False
) -> Image.Image:
    """Decode `source` into an upright 8-bit RGB image.

    Rotated as its EXIF tag says; the first frame of an animation; transparency composited on white;
    16-bit grey scaled to 8 bits over its full range; palette, grey and CMYK converted.

    Args:
        source: path, file bytes, `data:` / `file:` address or PIL image. `http(s)` only with
            `fetch_urls`.
        max_pixels: images with more pixels (width x height) are refused by their header alone.
        fetch_urls: allow this call to open network addresses. Off by default: a server must not
            fetch what a request names.

    Raises:
        ValueError: missing, empty, unreadable, damaged or oversized file; the text says which, what
            was found and what to do.
    """
    if isinstance(source, Image.Image):
        name = f"PIL image (mode {source.mode}, {source.width} x {source.height})"
        _check_size(source, name, max_pixels)
        return _decode(source, name)
    name, content = _read(source, fetch_urls)
    with _open(content, name, max_pixels) as image:
        return _decode(image, name)


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Centre `image` on a square of `colour` as large as its longer side (LLaVA's `expand2square`,
    used by M3).

    A side beyond `MAX_SIDE` is shrunk to it first, keeping the shape.
    """
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def mean_colour(image_processor: BaseImageProcessor) -> tuple[int, int, int]:
    """The padding colour: `int(mean * 255)` per channel, so that padding is about zero after
    normalisation.
    """
    mean: Sequence[float] = image_processor.image_mean  # pyright: ignore[reportAttributeAccessIssue] (set at run time)
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def image_size(
    source: ImageSource, max_pixels: int = MAX_PIXELS, fetch_urls: bool = False
) -> tuple[int, int]:
    """(height, width) that `load_image` would give, by the header alone wherever the format
    allows it.
    """
    if isinstance(source, Image.Image):
        return _upright_size(source)
    name, content = _read(source, fetch_urls)
    with _open(content, name, max_pixels) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODE_ERRORS:
        orientation = None  # `_upright` leaves such an image as it is
    return (
        (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)
    )


def _read(source: str | Path | bytes, fetch_urls: bool) -> tuple[str, bytes]:
    """Name for messages, and the file's content."""
    if isinstance(source, bytes):
        name, content = f"image of {len(source):,} bytes", source
    elif isinstance(source, str) and source.startswith("data:"):
        name, content = _read_data_address(source)
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        name, content = source, _download(source, fetch_urls)
    elif isinstance(source, str | Path):
        name, content = _read_file(source)
    else:
        raise ValueError(
            "an image must be a path, the bytes of a file, a data: or file: address or a PIL "
            "image; got "
            f"{type(source).__name__}"
        )
    if not content:
        raise ValueError(f"{name}: the image file is empty (0 bytes). Copy or download it again")
    return name, content


def _read_file(source: str | Path) -> tuple[str, bytes]:
    text = str(source)
    path = Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(source)
    shown = text if len(text) <= 200 else f"{text[:80]}... ({len(text):,} characters)"
    try:
        return str(path), path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{shown}: no such image file (looked from {Path.cwd()}). Check the path and the image "
            "folder"
        ) from None
    except IsADirectoryError:
        raise ValueError(f"{shown}: is a folder, expected an image file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ValueError(
            f"{shown}: cannot be read as a file ({error}). Raw base64 text needs a "
            "'data:image/png;base64,' in front"
        ) from error


def _read_data_address(address: str) -> tuple[str, bytes]:
    head, comma, body = address.partition(",")
    name = f"{head[:60]},... ({len(address):,} characters)"
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"{name}: expected 'data:<type>;base64,<content>'")
    try:
        return name, base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name}: the content is not valid base64 ({error})") from error


def _download(address: str, fetch_urls: bool) -> bytes:
    if not fetch_urls:
        raise ValueError(
            f"{address}: network addresses are not fetched unless asked for. Download the image "
            "and pass its path or "
            "bytes, or allow it for this call with fetch_urls=True"
        )
    try:
        with httpx2.stream(
            "GET", address, timeout=DOWNLOAD_TIMEOUT_S, follow_redirects=True
        ) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:
                    break
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ValueError(f"{address}: could not be downloaded ({error})") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(
            f"{address}: larger than {MAX_DOWNLOAD_BYTES:,} bytes; download it and "
            "pass a smaller copy"
        )
    return bytes(content)


def _open(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """Read the header only, and refuse what is not an image or too large."""
    try:
        with _strict_decoding(), warnings.catch_warnings():
            # PIL's own warning starts at a fixed size; ours is an argument and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        raise ValueError(
            f"{name}: not an image in a known format (it begins with {str(content[:8])[1:]}); "
            f"expected one of {', '.join(_formats())}. Save it as one of these"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error} Shrink the image first") from None
    except _DECODE_ERRORS as error:
        raise ValueError(
            f"{name}: the header of the image is damaged ({error}). Copy or download it again"
        ) from error
    _check_size(image, name, max_pixels)
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of PIL can read (AVIF and JPEG2000 are optional)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name}: the image is {width} x {height} pixels; expected at least 1 x 1")
    if width * height > max_pixels:
        raise TooLargeError(
            f"{name}: the image is {width} x {height} = {width * height:,} pixels, more than the "
            f"limit of {max_pixels:,}"
        )


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Pillow refuses damaged files inside, whatever another library wished for the whole process.

    lmms-eval, once imported, has Pillow fill what is missing of an image with grey and say nothing.
    """
    with _STRICT:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        with _strict_decoding():
            image.load()  # the first frame, whatever follows
    except _DECODE_ERRORS as error:
        raise ValueError(
            f"{name}: the image data is damaged or cut short ({error or type(error).__name__}); "
            "header says "
            f"{image.format}, {image.width} x {image.height}. Copy or download it again"
        ) from error
    return _to_rgb(_upright(image), image.format, name)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        # an unreadable EXIF block says nothing about the orientation; the pixels are fine
        return image


def _to_rgb(image: Image.Image, format: str | None, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # not the caller's object, and without its file
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        return _grey16_to_rgb(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name}: pixels of mode {image.mode} (32-bit "
            f"{'integers' if image.mode == 'I' else 'floats'}) have no "
            "agreed white level; convert the image to 8 or 16 bits first"
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # La and RGBa hold colours multiplied by alpha; PIL only converts RGBa -> RGBA and La -> LA.
        straight = image.convert("LA") if image.mode == "La" else image
        coloured = straight.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    """0..65535 -> 0..255, rounded; PIL's own conversion would clip everything above 255 to
    white.
    """
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
