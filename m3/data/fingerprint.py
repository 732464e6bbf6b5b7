"""Fingerprints of data, by which a resumed run checks that it goes on with the same samples.

In: a recipe's source and its samples, or files. Out: a few digests. What is read is bounded, as a
run must begin at once:

- record files of text (JSON, JSON lines, plain text) whole, so every text, every name of a picture,
  and their order;
- files that hold pictures too (tar, parquet, Arrow) whole up to `MAX_READ_BYTES` in all, above that
  their sizes and blocks spread evenly over them, never further apart than a
  `MAX_READ_BYTES / BLOCK_SIZE`-th of all;
- samples as they are read, drawn from the whole source: up to `MAX_SAMPLES`, or until they hold
  `MAX_HELD_BYTES` of pictures themselves (of a tar, of a table, frames of videos). Each counts with
  its texts and its pictures' bytes, or their files' names and sizes; and with the content of these
  files, spread over them, as many as `MAX_READ_BYTES` allow.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from m3.data.formats import FORMATS
from m3.data.recipe import Source
from m3.data.sample import AnySample, Document, SampleSource

MAX_READ_BYTES = 2**30
"""Bytes that are read of a source's binary files, and of its picture files."""
BLOCK_SIZE = 2**16
MAX_SAMPLES = 20_000
MAX_HELD_BYTES = 2**28
THREADS = 16
"""Files are often far away, and most of the time is waiting for them."""


def fingerprint(source: Source, samples: SampleSource) -> dict[str, str]:
    """Digests of a source by what they are of: `samples` (their number), `records`, `content`."""
    reader = FORMATS[source.format].reader
    files = reader.find_files(source.path)
    root = Path(source.path)
    records = bounded_digest(
        files, root if root.is_dir() else root.parent, None if reader.is_text else MAX_READ_BYTES
    )
    return {"samples": str(len(samples)), "records": records, "content": _digest_samples(samples)}


def bounded_digest(files: Sequence[Path], root: Path, limit: int | None = MAX_READ_BYTES) -> str:
    """Digest of names (relative to `root`), sizes and contents of files; of all bytes, or of
    blocks of about `limit` in all.
    """
    sizes = [file.stat().st_size for file in files]
    step = 1 if limit is None else -(-sum(sizes) // limit)
    with ThreadPoolExecutor(THREADS) as threads:
        contents = threads.map(lambda file: _digest_blocks(file, step), files)
        files_digest = hashlib.sha256()
        for file, file_size, content in zip(files, sizes, contents, strict=True):
            name = file.relative_to(root) if file.is_relative_to(root) else file
            _add_contents(files_digest, str(name), str(file_size), content)
    return files_digest.hexdigest()


def _digest_blocks(file: Path, step: int) -> bytes:
    """Digest of every `step`-th block of a file, the first and the last among them."""
    block_digest = hashlib.sha256()
    with file.open("rb") as opened_file:
        if step == 1:
            return hashlib.file_digest(opened_file, "sha256").digest()
        last_block = max(file.stat().st_size - 1, 0) // BLOCK_SIZE
        for block in sorted({*range(0, last_block + 1, step), last_block}):
            opened_file.seek(block * BLOCK_SIZE)
            block_digest.update(opened_file.read(BLOCK_SIZE))
    return block_digest.digest()


def _digest_samples(samples: SampleSource) -> str:
    """Digest of drawn samples, in the order of the draw.

    Those that cannot be read count as such.
    """
    sample_digest, held_bytes = hashlib.sha256(), 0
    files: list[Path] = []
    for record_number in np.random.default_rng(0).permutation(len(samples))[:MAX_SAMPLES].tolist():
        if held_bytes > MAX_HELD_BYTES:
            break
        try:
            sample = samples[record_number]
        except ValueError:
            _add_contents(sample_digest, "broken")
            continue
        _add_contents(sample_digest, *_sample_texts(sample))
        for image in sample.images:
            if isinstance(image, str | Path) and not str(image).startswith("data:"):
                files.append(Path(image))
            held_bytes += len(image) if isinstance(image, bytes) else 0
            _add_contents(sample_digest, image if isinstance(image, bytes) else str(image))
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(_file_size, files))
        step = max(-(-sum(sizes) // MAX_READ_BYTES), 1)
        _add_contents(sample_digest, *map(str, sizes))
        _add_contents(sample_digest, *threads.map(_file_digest, files[::step]))
    return sample_digest.hexdigest()


def _sample_texts(sample: AnySample) -> Iterator[str]:
    yield sample.id
    if isinstance(sample, Document):
        yield from sample.texts
        return
    for turn in sample.turns:
        yield from (turn.role, str(turn.learned), *turn.texts)


def _file_size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _file_digest(file: Path) -> bytes:
    if not file.is_file():
        return b"missing"
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").digest()


def _add_contents(digest: "hashlib._Hash", *contents: str | bytes) -> None:
    for content in contents:
        encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
