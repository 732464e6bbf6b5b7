"""Images with captions in tars: `k.jpg` beside `k.txt` (the caption) or `k.json` ({"caption": ...}); webdataset's layout.

Becomes a document: the image, then the caption, which is learned.
"""

from pathlib import Path

from m3.data.formats.files import parse_json
from m3.data.formats.tar_index import Group, TarIndex
from m3.data.sample import Document


class CaptionTar:
    """One captioned image per sample of the tars. Other members and other keys of the JSON are not read."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: a tar, a folder of them, or a pattern with `*`.

        Raises:
            ValueError: see `TarIndex`.
        """
        self._tars = TarIndex(path)

    def __len__(self) -> int:
        return len(self._tars)

    def __getitem__(self, index: int) -> Document:
        group = self._tars[index]
        images = group.images()
        if len(images) != 1:
            raise ValueError(f"{group.where}: expected one image, got {len(images)} ({_names(group)})")
        try:
            return Document(group.key, (group.read(images[0]),), ("", _caption(group)))
        except ValueError as error:
            raise error if str(error).startswith(group.where) else ValueError(f"{group.where}: {error}") from None


def _caption(group: Group) -> str:
    texts, records = group.find("txt"), group.find("json")
    if texts:
        try:
            return group.read(texts[0]).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{group.where}: not UTF-8 text ({error})") from error
    if not records:
        raise ValueError(f"{group.where}: has no caption; expected a .txt or a .json member ({_names(group)})")
    record = parse_json(group.read(records[0]), group.where)
    if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
        keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{group.where}: expected an object with 'caption', got {keys or 'an empty object'}")
    return record["caption"].strip()


def _names(group: Group) -> str:
    return "members: " + ", ".join(f".{member.suffix}" for member in group.members)
