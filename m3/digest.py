"""Digests of JSON values and of files, by which a run recognises what it depends on."""

import hashlib
import json
from collections.abc import Iterable
from inspect import getsourcefile
from pathlib import Path

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

DIGEST_LENGTH = 24
"""Hexadecimal digits kept of a SHA-256: 96 bits, so that a million cells collide with
probability 1e-17.
"""


def digest(value: Json | bytes) -> str:
    """Digest of bytes, or of a JSON value whatever the order of its keys."""
    if not isinstance(value, bytes):
        value = json.dumps(
            value, sort_keys=True, ensure_ascii=False, separators=(",", ":")
        ).encode()
    return hashlib.sha256(value).hexdigest()[:DIGEST_LENGTH]


def digest_files(paths: Iterable[Path], root: Path) -> str:
    """Digest of names (relative to `root`) and contents of files."""
    contents: dict[str, Json] = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            contents[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest(contents)


def source_digest(kind: type) -> str:
    """Digest of the file that defines a class: what a changed method computes is another thing."""
    file = getsourcefile(kind)
    if file is None:
        raise ValueError(f"{kind.__module__}.{kind.__name__} has no source file to tell it by")
    return digest(Path(file).read_bytes())
