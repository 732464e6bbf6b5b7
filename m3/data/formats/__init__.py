"""File formats that become samples: one row per format."""

from m3.data.formats.llava_json import LlavaJson
from m3.data.formats.llava_parquet import LlavaParquet

FORMATS: dict[str, type[LlavaJson] | type[LlavaParquet]] = {
    "llava_json": LlavaJson,
    "llava_parquet": LlavaParquet,
}
"""Name in a recipe -> source; each is made from (path, image_folder)."""

__all__ = ["FORMATS", "LlavaJson", "LlavaParquet"]
