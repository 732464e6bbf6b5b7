"""File formats that become samples: one row per format. docs/data.md shows an example of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from m3.data.formats.aria_jsonl import AriaJsonl
from m3.data.formats.caption_tar import CaptionTar
from m3.data.formats.files import find_files, json_lines_files
from m3.data.formats.hf_dataset import HfDataset, table_files
from m3.data.formats.interleaved_jsonl import InterleavedJsonl
from m3.data.formats.interleaved_tar import InterleavedTar
from m3.data.formats.llava_json import LlavaJson
from m3.data.formats.llava_parquet import LlavaParquet
from m3.data.formats.llava_tar import LlavaTar
from m3.data.formats.ocr_jsonl import OcrJsonl
from m3.data.formats.text_files import TextFiles, text_files
from m3.data.formats.text_jsonl import TextJsonl
from m3.data.recipe import Source
from m3.data.sample import SampleSource

OPTIONS = ("image_folder", "chunk_bytes", "split", "take", "filters", "num_frames", "ignore")
"""What only some formats read of a recipe's source."""


@dataclass(frozen=True)
class Format:
    """`open` makes the samples of a recipe's source, `reads` are the options it looks at.

    `files`: those that a path means. `is_text`: they hold no pictures, so that they are small.
    """

    open: Callable[[Source], SampleSource]
    reads: tuple[str, ...] = ()
    files: Callable[[str], list[Path]] = json_lines_files
    is_text: bool = True


_TAR = partial(find_files, suffixes=(".tar",))
_PARQUET = partial(find_files, suffixes=(".parquet",))
_MEDIA = ("image_folder", "num_frames", "ignore")
FORMATS: dict[str, Format] = {
    "llava_json": Format(
        lambda s: LlavaJson(s.path, s.image_folder, s.num_frames, s.ignore or ()), _MEDIA
    ),
    "llava_parquet": Format(
        lambda s: LlavaParquet(s.path, s.image_folder, s.num_frames, s.ignore or ()),
        _MEDIA,
        _PARQUET,
        False,
    ),
    "llava_tar": Format(
        lambda s: LlavaTar(s.path, s.num_frames, s.ignore or ()),
        ("num_frames", "ignore"),
        _TAR,
        False,
    ),
    "aria_jsonl": Format(
        lambda s: AriaJsonl(s.path, s.image_folder, s.num_frames, s.ignore or ()), _MEDIA
    ),
    "caption_tar": Format(
        lambda s: CaptionTar(s.path, s.filters, s.ignore or ()), ("filters", "ignore"), _TAR, False
    ),
    "interleaved_jsonl": Format(
        lambda s: InterleavedJsonl(s.path, s.image_folder, s.ignore or ()),
        ("image_folder", "ignore"),
    ),
    "interleaved_tar": Format(
        lambda s: InterleavedTar(s.path, s.ignore or ()), ("ignore",), _TAR, False
    ),
    "ocr_jsonl": Format(
        lambda s: OcrJsonl(s.path, s.image_folder, s.ignore or ()), ("image_folder", "ignore")
    ),
    "text_jsonl": Format(lambda s: TextJsonl(s.path, s.ignore or ()), ("ignore",)),
    "text_files": Format(lambda s: TextFiles(s.path, s.chunk_bytes), ("chunk_bytes",), text_files),
    "hf_dataset": Format(
        lambda s: HfDataset(s.path, s.image_folder, s.split, s.take, s.num_frames, s.ignore or ()),
        (*_MEDIA, "split", "take"),
        table_files,
        False,
    ),
}
"""Name in a recipe -> how it is read."""


def open_source(source: Source) -> SampleSource:
    """The samples that a recipe's source names.

    Raises:
        ValueError: the file is missing or of another format, or the source has an option that its
            format does not read.
    """
    row = FORMATS[source.format]
    given = {
        "image_folder": source.image_folder,
        "chunk_bytes": source.chunk_bytes,
        "split": source.split,
        "take": source.take,
        "filters": source.filters,
        "num_frames": source.num_frames,
        "ignore": source.ignore,
    }
    for option in OPTIONS:
        if given[option] is not None and option not in row.reads:
            readers = ", ".join(name for name, other in FORMATS.items() if option in other.reads)
            raise ValueError(
                f"{source.path}: format {source.format} does not read {option} (read by {readers})"
            )
    return row.open(source)


__all__ = ["FORMATS", "Format", "LlavaJson", "LlavaParquet", "open_source"]
