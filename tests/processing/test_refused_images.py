"""What is no image, damaged, too large or elsewhere is refused in words; nothing else may come
out of a decoder.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, gradient
from PIL import Image, ImageFile, PngImagePlugin

from m3.processing.images import load_image

RED = (255, 0, 0)


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"nowhere\.png: no such image file \(looked from .*\)\. "
        r"Check the path",
    ):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="is a folder, expected an image file"):
        load_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"empty\.png: the image file is empty \(0 bytes\)\. Copy or download it "
        r"again",
    ):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="empty"):
        load_image(b"")


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>404 not found</html>")
    with pytest.raises(
        ValueError,
        match=r"page\.jpg: not an image in a known format \(it begins with "
        r"'<html>40'\); expected",
    ):
        load_image(path)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match="not an image in a known format"):
        load_image(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError,
        match=rf"cut\.{format.lower()}: .*(damaged|known "
        r"format).*(again|remove it)",
    ):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_raise_value_errors_only() -> None:
    """Random damage anywhere: the picture, or a ValueError; nothing else may come out of a
    decoder.
    """
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    refused = 0
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO"):
        content = encoded(noise, format)
        for _ in range(60):
            damaged = bytearray(content)
            for position in random.integers(0, min(len(content), 400), 4):
                damaged[position] = random.integers(0, 256)
            try:
                assert load_image(bytes(damaged)).mode == "RGB"
            except ValueError:
                refused += 1
    assert refused > 50


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header that promises a huge image, and next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9_000, 9_000), (60_000, 60_000), (2_000_000, 100)])
def test_decompression_bombs_are_refused_by_their_header(
    size: tuple[int, int], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    before = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    with pytest.raises(ValueError, match=r"bomb\.png: .*pixels.*(Shrink|shrink)"):
        load_image(path)
    assert before == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


def test_the_pixel_limit_is_an_argument() -> None:
    content = encoded(gradient(8, 6), "PNG")
    assert load_image(content, max_pixels=48).size == (8, 6)
    with pytest.raises(ValueError, match="8 x 6 = 48 pixels, more than the limit of 47"):
        load_image(content, max_pixels=47)
    with pytest.raises(ValueError, match="more than the limit of 47"):
        load_image(gradient(8, 6), max_pixels=47)


def test_a_text_bomb_in_a_png_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    with pytest.raises(
        ValueError, match=r"the header of the image is damaged|damaged or cut short"
    ):
        load_image(encoded(gradient(), "PNG", pnginfo=info))


def test_images_without_pixels() -> None:
    with pytest.raises(ValueError, match="0 x 4 pixels; expected at least 1 x 1"):
        load_image(Image.new("RGB", (0, 4)))


def test_addresses_are_not_fetched_unless_asked_for() -> None:
    with pytest.raises(
        ValueError,
        match=r"https://example\.org/a\.png: network addresses are not fetched unless "
        r"asked for",
    ):
        load_image("https://example.org/a.png")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/a\.png: could not be downloaded"):
        load_image("http://127.0.0.1:9/a.png", fetch_urls=True)


def test_bad_data_addresses() -> None:
    with pytest.raises(ValueError, match="expected 'data:<type>;base64,<content>'"):
        load_image("data:image/png,abc")
    with pytest.raises(ValueError, match="not valid base64"):
        load_image("data:image/png;base64,@@@")
    with pytest.raises(
        ValueError,
        match=r"cannot be read as a file .* Raw base64 text needs a "
        r"'data:image/png;base64,'",
    ):
        load_image("iVBORw0KGgo" * 500)


@pytest.mark.parametrize("lenient", [True, False])
def test_damage_is_refused_whatever_another_library_set(
    lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval switches Pillow's strictness off for the whole process when it is imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_image(buffer.getvalue()[:-400])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
