"""Any image a user may have becomes the RGB picture they expect."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, gradient
from PIL import Image
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil, SiglipImageProcessorPil

from m3.nesting import SingleTile, Tiles
from m3.processing import images as module
from m3.processing.images import load_image, mean_colour, pad_to_square
from m3.processing.tiles import EncoderTiles, prepare_images

GRID = (24, 24)
FIXTURE = Path(__file__).parents[1] / "fixtures" / "llava_m3" / "flat"
RED, WHITE = (255, 0, 0), (255, 255, 255)


def test_pixel_values_equal_the_original_implementation() -> None:
    """Same padding colour, resize, crop and normalisation as M3's own code.

    Measured difference: 0 (bit-exact).
    """
    reference = np.load(FIXTURE / "reference.npz")
    image_processor = CLIPImageProcessorPil.from_pretrained(FIXTURE / "vision_tower_src")
    image = load_image(FIXTURE / "image.png")
    assert image.size == tuple(reference["image_size_wh"])
    pixel_values = prepare_images(
        [image], EncoderTiles(image_processor, SingleTile(), GRID)
    ).pixel_values
    # 1e-6 leaves room for another build of numpy; one grey level would be 1.4e-2.
    np.testing.assert_allclose(pixel_values.numpy(), reference["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(8, 6), (6, 8), (7, 7), (9, 1)])
def test_pad_to_square_centres_the_image(size: tuple[int, int]) -> None:
    width, height = size
    square = np.asarray(pad_to_square(Image.new("RGB", size, RED), (1, 2, 3)))
    side = max(size)
    assert square.shape == (side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    inside = np.zeros((side, side), dtype=bool)
    inside[top : top + height, left : left + width] = True
    assert (square[inside] == RED).all()
    assert (square[~inside] == (1, 2, 3)).all()


def test_a_strip_does_not_become_a_huge_square() -> None:
    square = pad_to_square(Image.new("RGB", (module.MAX_SIDE * 4, 8), RED), (0, 0, 0))
    assert square.size == (module.MAX_SIDE, module.MAX_SIDE)
    assert square.getpixel((5, module.MAX_SIDE // 2)) == RED


def test_mean_colour_truncates_like_llava() -> None:
    assert mean_colour(SiglipImageProcessorPil()) == (127, 127, 127)
    assert mean_colour(CLIPImageProcessorPil()) == (122, 116, 104)


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "data", "pil"])
def test_every_kind_of_source_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "with space.png"
    content = encoded(gradient(), "PNG")
    path.write_bytes(content)
    sources = {
        "path": path,
        "str": str(path),
        "bytes": content,
        "file": path.as_uri(),
        "data": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "pil": Image.open(path),
    }
    image = load_image(sources[kind])
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(gradient()))


def test_a_pil_image_is_left_as_it_was() -> None:
    original = gradient()
    loaded = load_image(original)
    loaded.putpixel((0, 0), RED)
    assert original.getpixel((0, 0)) != RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(orientation: int, format: str) -> None:
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))  # the upper left quarter
    # How a camera stores it: the inverse of the turn that the tag asks for.
    T = Image.Transpose
    inverse = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
    }
    inverse |= {7: T.TRANSVERSE, 8: T.ROTATE_270}
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(stored, format, exif=exif))
    assert image.size == (32, 16)
    red = np.asarray(image).astype(int)[..., 1] < 128
    assert red[:8, :16].mean() > 0.9
    assert red[8:].mean() < 0.1
    assert red[:, 16:].mean() < 0.1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    image = load_image(
        encoded(
            Image.new("RGB", (16, 16), RED),
            "JPEG",
            exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\x00",
        )
    )
    assert image.size == (16, 16)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    image = load_image(
        encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    )
    assert image.getpixel((4, 4)) == RED


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = load_image(encoded(cmyk, "JPEG", quality=100)).getpixel((8, 8))
    assert (red > 200, green < 60, blue < 60) == (True, True, True)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_becomes_white(mode: str) -> None:
    """A black image of which the left half is transparent, in each way a PNG can say so."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (8, 8), (0,) * (len(mode) - 1) + (255,))
        image.paste((0,) * len(mode), (0, 0, 4, 8))
        content = encoded(image, "PNG")
    else:
        key = {"P": 1, "L": 1, "RGB": (1, 1, 1)}[mode]
        image = Image.new(mode, (8, 8), 0)
        if mode == "P":
            image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(key, (0, 0, 4, 8))
        content = encoded(image, "PNG", transparency=key)
    loaded = load_image(content)
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 1)) == WHITE
    assert loaded.getpixel((6, 6)) == (0, 0, 0)


def test_half_transparent_black_on_white_is_grey() -> None:
    assert load_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).getpixel(
        (0, 0)
    ) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(mode: str) -> None:
    image = Image.new(
        "LA" if mode == "La" else "RGBA", (4, 4), (0, 0) if mode == "La" else (0, 0, 0, 0)
    ).convert(mode)
    assert load_image(image).getpixel((0, 0)) == WHITE


def test_palette_and_bilevel_and_grey() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert load_image(encoded(palette, "PNG")).getpixel((0, 0)) == RED
    assert load_image(encoded(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == WHITE
    assert load_image(encoded(Image.new("L", (4, 4), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_over_its_whole_range(format: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(values), format)))
    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert loaded.shape == (1, 4, 3)


def test_sixteen_bit_colour_is_scaled() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    # PIL cannot write 16-bit colour
    row = b"\x00" + struct.pack(">6H", 65535, 0, 32896, 0, 65535, 257)
    header = struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    assert np.asarray(load_image(content)).tolist() == [[[255, 0, 128], [0, 255, 1]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_pixels_have_no_white(mode: str) -> None:
    content = encoded(Image.new(mode, (4, 4), 1), "TIFF")
    with pytest.raises(
        ValueError,
        match=rf"mode {mode} \(32-bit .* have no agreed white level; convert the image "
        r"to 8 or 16",
    ):
        load_image(content)


@pytest.mark.parametrize(
    "mode", ["CMYK", "HSV", "LAB", "RGBX", "YCbCr", "PA", "I;16", "I;16B", "I;16L"]
)
def test_every_other_mode_becomes_rgb(mode: str) -> None:
    image = load_image(Image.new(mode, (4, 3)))
    assert (image.mode, image.size) == ("RGB", (4, 3))


def test_every_allowed_format_is_read() -> None:
    image = Image.new("RGB", (16, 16), RED)
    for format in module._formats():
        assert load_image(encoded(image, format)).size == (16, 16), format
    assert len(module._formats()) >= 9


# ---------------------------------------------------------------------- the tensor
def test_preprocess_keeps_order_and_shape() -> None:
    colours = [RED, (0, 255, 0), (0, 0, 255)]
    images = [Image.new("RGB", (5 + n, 9), colour) for n, colour in enumerate(colours)]
    prepared = prepare_images(
        images,
        EncoderTiles(SiglipImageProcessorPil(size={"height": 8, "width": 8}), SingleTile(), GRID),
    )
    pixel_values = prepared.pixel_values
    assert prepared.images == [Tiles(1, (9, 5)), Tiles(1, (9, 6)), Tiles(1, (9, 7))]
    assert pixel_values.shape == (3, 3, 8, 8)
    assert [int(image[:, 4, 4].argmax()) for image in pixel_values] == [0, 1, 2]


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one image and got none"):
        prepare_images([], EncoderTiles(SiglipImageProcessorPil(), SingleTile(), GRID))


def test_an_image_processor_that_gives_patches_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"Siglip2ImageProcessorPil gave pixel_values of shape \[1, 256, 768\] "
        r"for one image",
    ):
        prepare_images([gradient()], EncoderTiles(Siglip2ImageProcessorPil(), SingleTile(), GRID))
