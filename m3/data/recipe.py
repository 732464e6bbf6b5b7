"""The data of a recipe: its sources, their weights, and how samples become rows. Strict YAML."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from m3.config import check_positive
from m3.data.formats.settings import OPTIONS, TEXT_FORMATS, FormatName, SourceSettings

if TYPE_CHECKING:
    import m3.data.formats.table


@dataclass(frozen=True, kw_only=True)
class Source(SourceSettings):
    """One set of samples: `path` in `format`, `weight` times in every pass over the data.

    `weight`: 0.5 is a half drawn with the seed (the same half in every pass), 1.5 everything once
    and that half once more, 2 everything twice, 0 nothing.
    """

    format: FormatName = "llava_json"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight of {self.path}: expected a number from 0, got {self.weight}")
        super().__post_init__()

    @property
    def name(self) -> str:
        """The source in messages, tables and files of lengths."""
        return f"{self.format}:{self.path}"


def open_source(source: Source) -> "m3.data.formats.table.FormatSamples":
    """The samples of a source.

    Raises:
        ValueError: a file is missing or of another format, or the source has an option that its
            format does not read.
    """
    # readers and parsers are imported by who opens a source; a recipe is checked without them
    from m3.data.formats.table import FORMATS, FormatSamples

    for option in OPTIONS:
        if getattr(source, option) is None or option in FORMATS[source.format].options:
            continue
        readers = ", ".join(name for name, row in FORMATS.items() if option in row.options)
        raise ValueError(
            f"{source.path}: format {source.format} does not read {option} (read by {readers})"
        )
    return FormatSamples(FORMATS[source.format], source)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Sources of a run, and how their samples are packed.

    `sources` may be written short as `{path: weight, ...}`, which means LLaVA JSON files.
    """

    sources: tuple[Source, ...] | dict[str, float]
    pack_length: int | None = 4096
    """Tokens of a packed row; null pads instead of packing."""
    max_length: int | None = None
    """Tokens a sequence may have; null for what a row holds."""
    max_images_per_row: int | None = None
    too_long: Literal["refuse", "drop"] = "refuse"
    """Treatment of a sample that does not fit; dropped ones are counted in the run's metrics."""
    broken: Literal["refuse", "skip"] = "refuse"
    """Treatment of a sample that cannot be read; skipped ones are counted in the run's metrics."""
    lengths: str | None = None
    """A file of `m3 data check --lengths FILE`.

    The samples of a step are then dealt so that all devices get about equally many tokens.
    """
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
                "give pack_length, or leave max_images_per_row out"
            )
        if (
            self.pack_length is not None
            and self.max_length is not None
            and self.max_length > self.pack_length
        ):
            raise ValueError(
                f"data.max_length {self.max_length} is more than a row of data.pack_length "
                f"{self.pack_length} tokens holds; lower the one or raise the other"
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
        """True if any source that is read may hold images."""
        return any(source.format not in TEXT_FORMATS for source in self.used_sources)

    @property
    def listed(self) -> tuple[Source, ...]:
        """The sources, in either form that a recipe may write them in."""
        assert not isinstance(self.sources, dict)  # __post_init__ made a tuple of it
        return self.sources
