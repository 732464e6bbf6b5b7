"""Fingerprints of data: what a run that goes on compares, so that it sees the samples that it was
going to see.

in: a recipe's source and its samples, or files; out: a few digests. What is read is bounded, for a
    run must begin at once:

- record files of text (JSON, JSON lines, plain text) whole, so every text, every name of a picture,
  and their order;
- files that hold pictures too (tar, parquet, Arrow) whole up to `WHOLE` bytes in all, above that
  their sizes and blocks spread evenly over them, never further apart than a `WHOLE / BLOCK`-th of
  all;
- samples as they are read, drawn from the whole source: up to `SAMPLES`, or until they hold `HELD`
  bytes of pictures themselves (of a tar, of a table, frames of videos). Of each its texts and its
  pictures' bytes, or their files' names and sizes; and the content of these files, spread over
  them, of as many as `WHOLE` bytes allow.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from m3.data.formats import FORMATS
from m3.data.recipe import Source
from m3.data.sample import AnySample, Document, SampleSource

WHOLE = 2**30
"""Bytes of a source's binary files that are read, and of its picture files."""
BLOCK = 2**16
SAMPLES = 20_000
HELD = 2**28
THREADS = 16
"""Files are often far away, and most of the time is waiting for them."""


def fingerprint(source: Source, samples: SampleSource) -> dict[str, str]:
    """Digests of a source by what they are of: `samples` (their number), `records`, `content`."""
    reader = FORMATS[source.format].reader
    files = reader.find_files(source.path)
    root = Path(source.path)
    records = digest_files(
        files, root if root.is_dir() else root.parent, None if reader.is_text else WHOLE
    )
    return {"samples": str(len(samples)), "records": records, "content": _digest_samples(samples)}


def digest_files(files: Sequence[Path], root: Path, limit: int | None = WHOLE) -> str:
    """Digest of names (relative to `root`), sizes and contents of files; of all bytes, or of
    blocks of about `limit` in all.
    """
    sizes = [file.stat().st_size for file in files]
    step = 1 if limit is None else -(-sum(sizes) // limit)
    with ThreadPoolExecutor(THREADS) as threads:
        contents = threads.map(lambda file: _digest_blocks(file, step), files)
        digest = hashlib.sha256()
        for file, size, content in zip(files, sizes, contents, strict=True):
            name = file.relative_to(root) if file.is_relative_to(root) else file
            _add(digest, str(name), str(size), content)
    return digest.hexdigest()


def _digest_blocks(file: Path, step: int) -> bytes:
    """Digest of every `step`-th block of a file, the first and the last among them."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        if step == 1:
            return hashlib.file_digest(opened, "sha256").digest()
        last = max(file.stat().st_size - 1, 0) // BLOCK
        for block in sorted({*range(0, last + 1, step), last}):
            opened.seek(block * BLOCK)
            digest.update(opened.read(BLOCK))
    return digest.digest()


def _digest_samples(samples: SampleSource) -> str:
    """Digest of drawn samples, in the order of the draw.

    Those that cannot be read count as such.
    """
    digest, held = hashlib.sha256(), 0
    files: list[Path] = []
    for number in np.random.default_rng(0).permutation(len(samples))[:SAMPLES].tolist():
        if held > HELD:
            break
        try:
            sample = samples[number]
        except ValueError:
            _add(digest, "broken")
            continue
        _add(digest, *_texts(sample))
        for image in sample.images:
            if isinstance(image, str | Path) and not str(image).startswith("data:"):
                files.append(Path(image))
            held += len(image) if isinstance(image, bytes) else 0
            _add(digest, image if isinstance(image, bytes) else str(image))
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(_size, files))
        step = max(-(-sum(sizes) // WHOLE), 1)
        _add(digest, *map(str, sizes))
        _add(digest, *threads.map(_content, files[::step]))
    return digest.hexdigest()


def _texts(sample: AnySample) -> Iterator[str]:
    yield sample.id
    if isinstance(sample, Document):
        yield from sample.texts
        return
    for turn in sample.turns:
        yield from (turn.role, str(turn.learned), *turn.texts)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _content(file: Path) -> bytes:
    if not file.is_file():
        return b"missing"
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _add(digest: "hashlib._Hash", *parts: str | bytes) -> None:
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
