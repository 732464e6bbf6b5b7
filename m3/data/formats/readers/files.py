"""Files that a path means, and strict JSON. Shared by all readers."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files."""

PICKLE_SUFFIXES = ("pkl", "pickle", "pth", "pt", "pyd")
"""Files that may run any program when they are opened, and are refused."""


def check_uncompressed(path: Path) -> None:
    """Raise a `ValueError` for a compressed file: no record of one can be reached at once."""
    with path.open("rb") as file:
        first_bytes = file.read(8)
    for magic, compression in COMPRESSED.items():
        if first_bytes.startswith(magic):
            raise ValueError(
                f"{path}: is compressed ({compression}), so no sample can be reached at once. "
                "Decompress it"
            )


def existing_files(paths: Iterable[Path]) -> list[Path]:
    """Those that are files, by name.

    Raises:
        ValueError: a link to nothing, which would be left out without a word.
    """
    existing: list[Path] = []
    for path in sorted(paths):
        if path.is_file():
            existing.append(path)
        elif path.is_symlink() and not path.exists():
            raise ValueError(
                f"{path}: is a link to a file that is not there ({path.readlink()}). Mount it, or "
                "remove the link"
            )
    return existing


def find_files(path: str | Path, suffix: str) -> list[Path]:
    """The file `path`; or the files with `suffix` in the folder `path`; or those that match its
    `*`, by name.

    Raises:
        ValueError: there is none, or a link among them leads nowhere.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        files = existing_files(root.glob(f"*{suffix}"))
        if not files:
            raise ValueError(f"{path}: holds no *{suffix} (looked from {Path.cwd()})")
        return files
    if "*" in str(path):
        start = Path(root.anchor) if root.is_absolute() else Path()
        files = existing_files(start.glob(str(root.relative_to(root.anchor))))
        if not files:
            raise ValueError(f"{path}: matches no file (looked from {Path.cwd()})")
        return files
    hint = ". Braces are not expanded; write shards-*.tar, or one source per range"
    raise ValueError(
        f"{path}: no such data file (looked from {Path.cwd()}){hint if '{' in str(path) else ''}"
    )


def parse_json(text: str | bytes, location: str) -> Any:
    """Parsed JSON, or a `ValueError` that begins with `location`."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{location}: not UTF-8 text ({error})") from error
    # JSONDecodeError, and what Python says of a number of thousands of digits
    except ValueError as error:
        raise ValueError(f"{location}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{location}: not valid JSON: nested too deeply") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; refused if a key stands twice, as JSON's readers drop the first in silence."""
    values = dict(pairs)
    if len(values) != len(pairs):
        key_counts = Counter(key for key, _ in pairs)
        repeated_key = next(key for key, count in key_counts.items() if count > 1)
        excerpt = str(values)[:80]  # tells which object it is, in a file that is one line
        raise ValueError(f"an object has the key {repeated_key!r} twice: {excerpt}")
    return values
