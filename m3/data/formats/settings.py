"""Settings of a recipe's source that its format reads: the path, and options of some formats."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from m3.config import check_positive

FormatName = Literal[
    "llava_json",
    "llava_parquet",
    "llava_tar",
    "aria_jsonl",
    "caption_tar",
    "interleaved_jsonl",
    "interleaved_tar",
    "ocr_jsonl",
    "text_jsonl",
    "text_files",
    "hf_dataset",
]
"""Names of the rows of `FORMATS`."""
TEXT_FORMATS: tuple[FormatName, ...] = ("text_jsonl", "text_files")
"""Those whose samples hold no images."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Limits for captioned images; null for any.

    `m3 data check` counts what they leave out.

    `min_similarity`: of image and caption, as their record says. `min_resolution`: pixels of the
        shorter side. `max_aspect_ratio`: the longer side over the shorter.
    """

    min_similarity: float | None = None
    min_resolution: int | None = None
    max_aspect_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.min_similarity, self.min_resolution, self.max_aspect_ratio) == (None, None, None):
            raise ValueError(
                "filters: give min_similarity, min_resolution or max_aspect_ratio, or leave "
                "filters out"
            )
        check_positive("filters", min_resolution=self.min_resolution)
        if self.min_similarity is not None and not math.isfinite(self.min_similarity):
            raise ValueError(
                f"filters.min_similarity must be a finite number, got {self.min_similarity}"
            )
        if self.max_aspect_ratio is not None and not 1 <= self.max_aspect_ratio < math.inf:
            raise ValueError(
                "filters.max_aspect_ratio must be at least 1 (a square) and finite, got "
                f"{self.max_aspect_ratio}"
            )


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Path of a source, and the options that only some formats read.

    The rows of m3/data/formats/table.py say which; giving another is refused.
    """

    path: str
    image_folder: str | None = None
    """Folder that relative image paths start from; null for the file's own folder."""
    chunk_bytes: int | None = None
    """Longer texts are split at line ends into pieces of at most this many bytes of UTF-8."""
    split: str | None = None
    """Split of a Hugging Face data set; null for `train`."""
    take: int | None = None
    """Samples that are streamed from the hub, once, to the local disk; null downloads the whole
    split.
    """
    filters: Filters | None = None
    """Filters of captioned images."""
    num_frames: int | None = None
    """Frames of a video whose record does not say it; null for 8."""
    ignore: tuple[str, ...] | None = None
    """Keys of records (columns, kinds of a tar's members) that hold content and are left out all
    the same.
    """

    def __post_init__(self) -> None:
        check_positive(
            f"source {self.path}",
            chunk_bytes=self.chunk_bytes,
            take=self.take,
            num_frames=self.num_frames,
        )


OPTIONS = tuple(option.name for option in fields(SourceSettings) if option.name != "path")
"""Settings that only some formats read."""
