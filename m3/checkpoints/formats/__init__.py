"""The table of formats, and which of them a `config.json` is."""

from collections.abc import Mapping
from pathlib import Path

from m3.checkpoints.base import Format, read_json
from m3.checkpoints.formats.aria import Aria
from m3.checkpoints.formats.internvl import InternVl
from m3.checkpoints.formats.llava_hf import LlavaHf
from m3.checkpoints.formats.llava_m3 import LlavaM3
from m3.checkpoints.formats.llava_next_hf import LlavaNextHf
from m3.checkpoints.formats.native import M3Native
from m3.config import near_match

NATIVE = "m3-native"
FORMATS: Mapping[str, Format] = {
    NATIVE: M3Native(),
    "m3": LlavaM3(),
    "llava-hf": LlavaHf(),
    "llava-next-hf": LlavaNextHf(),
    "aria": Aria(),
    "internvl": InternVl(),
}
"""Asked in this order when the format is to be recognised."""


def get_format(name: str) -> Format:
    """The format called `name`; a `ValueError` has the near match."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}. {near_match(name, FORMATS)}")
    return FORMATS[name]


def recognise(folder: Path) -> str:
    """The name of the format that `config.json` is of; the folder's name does not matter."""
    config = read_json(folder / "config.json")
    for format_name, form in FORMATS.items():
        if form.recognises(config):
            return format_name
    raise ValueError(
        f"{folder}: config.json has model_type {config.get('model_type')!r}, which no known format "
        "has "
        f"({', '.join(FORMATS)}). A text or vision model alone is put together with `m3 assemble`"
    )
