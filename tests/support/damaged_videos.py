"""Video files of every container that ffmpeg writes here, and what damage does to them."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from videos import write_video

CODECS = {
    "mp4": ("mpeg4", "libx264"),
    "mov": ("mjpeg",),
    "mkv": ("libx264", "ffv1"),
    "avi": ("mpeg4", "libx264", "rawvideo"),
    "flv": ("flv1", "libx264"),
    "ts": ("mpeg2video", "libx264"),
    "mpg": ("mpeg1video",),
    "asf": ("msmpeg4v3",),
    "gif": ("gif",),
}
KINDS = [(suffix, codec) for suffix, codecs in CODECS.items() for codec in codecs]
WEBM = Path(__file__).parents[1] / "fixtures" / "videos" / "growing.webm"
SIZES = ((64, 48), (320, 240))


def write_whole(folder: Path) -> list[bytes]:
    """The undamaged files, 3 KB to 1 MB."""
    files = []
    for suffix, codec in KINDS:
        for size in SIZES:
            pixels = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            path = folder / f"{codec}_{size[0]}.{suffix}"
            files.append(write_video(path, 24, 25, size, codec, pixel_format=pixels).read_bytes())
    files.append(WEBM.read_bytes())  # libvpx does not open in every process
    return files


def damage(content: bytes, rng: random.Random) -> bytes:
    """One to three kinds of damage, one after the other."""
    for _ in range(rng.randint(1, 3)):
        content = rng.choice(DAMAGES)(content, rng) or b"\0"
    return content


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content)) + 1]


def _behead(content: bytes, rng: random.Random) -> bytes:
    return content[rng.randrange(len(content)) :]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 8, 64, 512])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_head(content: bytes, rng: random.Random) -> bytes:
    """Where sizes, counts and rates stand."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 4, 16])):
        changed[rng.randrange(min(len(changed), 1024))] = rng.choice(
            [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
        )
    return bytes(changed)


def _zeros(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice([4, 64, 1024, 16384])
    return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return (
        content[:start]
        + content[start : start + rng.choice([16, 512, 8192])] * rng.choice([2, 50])
        + content[start:]
    )


def _absurd(content: bytes, rng: random.Random) -> bytes:
    """A number of 4 bytes becomes a limit of its kind, in either order of bytes."""
    start = rng.randrange(max(len(content) - 4, 1))
    number = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x10000])
    return content[:start] + struct.pack(rng.choice("<>") + "I", number) + content[start + 4 :]


DAMAGES = (_cut, _behead, _flip, _flip_head, _flip_head, _zeros, _swap, _repeat, _absurd, _absurd)


def damaged(folder: Path, number: int, seed: int) -> Iterator[bytes]:
    """So many damaged files, always the same for a seed; every kind in turn."""
    rng, whole = random.Random(seed), write_whole(folder)
    for n in range(number):
        yield damage(whole[n % len(whole)], rng)[: 2**20]
