"""What a recipe says about its data: the sources, their weights, and how samples become rows.

Strict, from YAML.
"""

import math
from dataclasses import dataclass
from typing import Literal

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
"""The rows of m3/data/formats."""

TEXT_FORMATS: tuple[FormatName, ...] = ("text_jsonl", "text_files")
"""Those that hold no images."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which captioned images are read; null for any.

    What is left out is counted by `m3 data check`.

    `min_similarity`: of image and caption, as their record says. `min_resolution`: pixels of the
        shorter side.
    `max_aspect_ratio`: the longer side over the shorter.
    """

    min_similarity: float | None = None
    min_resolution: int | None = None
    max_aspect_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.min_similarity, self.min_resolution, self.max_aspect_ratio) == (None, None, None):
            raise ValueError(
                "filters: give min_similarity, min_resolution or max_aspect_ratio, or "
                "leave filters out"
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
class Source:
    """One set of samples: `path` in `format`, `weight` times in every pass over the data.

    `weight`: 0.5 is a half drawn with the seed (the same half in every pass), 1.5 everything once
    and that half once more, 2 everything twice, 0 nothing. The rest is read by some formats only
    (m3/data/formats); where a format does not read it, giving it is refused.
    """

    path: str
    format: FormatName = "llava_json"
    weight: float = 1.0
    image_folder: str | None = None
    """What relative image paths are relative to; null for the file's own folder."""
    chunk_bytes: int | None = None
    """Longer texts are split at line ends into pieces of at most this many bytes of UTF-8."""
    split: str | None = None
    """Of a Hugging Face data set."""
    take: int | None = None
    """How many samples are streamed from the hub, once, to the local disk; null downloads the
    whole split.
    """

    filters: Filters | None = None
    """What is left out of captioned images."""
    num_frames: int | None = None
    """Frames of a video whose record does not say it; null for 8."""
    ignore: tuple[str, ...] | None = None
    """Keys of records (columns, kinds of a tar's members) that hold content and are left out all
    the same.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight of {self.path}: expected a number from 0, got {self.weight}")
        check_positive(
            f"source {self.path}",
            chunk_bytes=self.chunk_bytes,
            take=self.take,
            num_frames=self.num_frames,
        )

    @property
    def name(self) -> str:
        """The source in messages, tables and files of lengths."""
        return f"{self.format}:{self.path}"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and how it is packed.

    `sources` may be written short as `{path: weight, ...}`, which means LLaVA JSON files.
    """

    sources: tuple[Source, ...] | dict[str, float]
    pack_length: int | None = 4096
    """Tokens of a packed row; null pads instead of packing."""
    max_length: int | None = None
    """Tokens a sequence may have; null for what a row holds."""
    max_images_per_row: int | None = None
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a sample that does not fit. Dropped ones are counted in the run's metrics."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do with a sample that cannot be read.

    Skipped ones are counted in the run's metrics.
    """
    lengths: str | None = None
    """What `m3 data check --lengths FILE` wrote: the samples of a step are then dealt so that all
    devices get about
    equally many tokens."""
    workers: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.sources, dict):
            sources = tuple(
                Source(path=path, weight=weight) for path, weight in self.sources.items()
            )
            object.__setattr__(self, "sources", sources)  # frozen
        if not self.sources:
            raise ValueError("data.sources is empty; name at least one source")
        if not any(source.weight for source in self.listed):
            raise ValueError("data.sources: every weight is 0, so nothing would be read")
        check_positive(
            "data",
            pack_length=self.pack_length,
            max_length=self.max_length,
            max_images_per_row=self.max_images_per_row,
        )
        if self.workers < 0:
            raise ValueError(f"data.workers must be at least 0, got {self.workers}")
        if self.pack_length is None and self.max_images_per_row is not None:
            raise ValueError(
                "data.max_images_per_row is of packed rows, and data.pack_length null packs none; "
                "give pack_length, or leave "
                "max_images_per_row out"
            )
        if (
            self.pack_length is not None
            and self.max_length is not None
            and self.max_length > self.pack_length
        ):
            raise ValueError(
                f"data.max_length {self.max_length} is more than a row of data.pack_length "
                f"{self.pack_length} tokens holds; "
                "lower the one or raise the other"
            )

    @property
    def longest(self) -> int | None:
        """Tokens that a sequence may have; None without a limit."""
        return self.pack_length if self.max_length is None else self.max_length

    @property
    def used_sources(self) -> tuple[Source, ...]:
        """The sources that are read at all."""
        return tuple(source for source in self.listed if source.weight > 0)

    @property
    def may_show_images(self) -> bool:
        """Whether any source that is read may hold images."""
        return any(source.weight and source.format not in TEXT_FORMATS for source in self.listed)

    @property
    def listed(self) -> tuple[Source, ...]:
        """The sources, however they were written."""
        assert not isinstance(self.sources, dict)  # __post_init__ made a tuple of it
        return self.sources


def check_positive(section: str, **numbers: int | None) -> None:
    """A `ValueError` that names the key of `section` which is given and below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{section}: {name} must be at least 1, got {number}")
