"""LLaVA's conversations in tars: `k.json` ({"conversations": [...]}) beside `k.jpg`, or `k.0.jpg`, `k.1.jpg` ...

The images of a sample are all its image members in the order of the tar, or those that the record's `image` names.
"""

from pathlib import Path

from m3.data.formats.record import sample_from_record, shown
from m3.data.formats.tar_index import TarIndex
from m3.data.sample import Sample


class LlavaTar:
    """One conversation per sample of the tars."""

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

    def __getitem__(self, index: int) -> Sample:
        group = self._tars[index]
        record = group.record()
        if not isinstance(record, dict):
            raise ValueError(f"{group.where}: expected an object with conversations, got {shown(record)}")
        names = record.get("image")
        if names is None:
            images = group.images()
        else:
            listed = names if isinstance(names, list) else [names]
            if not all(isinstance(name, str) for name in listed):
                raise ValueError(f"{group.where}: 'image' must name members of the sample, got {shown(names)}")
            images = [group.named(name) for name in listed]
        return sample_from_record(
            record | {"image": [group.read(image) for image in images]}, group.where, group.key, None
        )
