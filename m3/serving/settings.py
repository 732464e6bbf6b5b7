"""Everything about a server that can be set, with its defaults.

All limits are on unless they are raised.

In: a YAML file and `key=value` overrides (m3/config.py), or the dataclasses themselves. Out:
    `Settings`.
"""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

MIB = 2**20
KEY_VARIABLE = "M3_API_KEY"
"""Environment variable of the API key that clients must send."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request.

    Beyond it the request is refused with what it asked, and the limit.
    """

    body_bytes: int = 48 * MIB
    """Of the whole request as it comes over the network."""
    body_seconds: float = 30.0
    """In which it must have arrived."""
    image_bytes: int = 16 * MIB
    """Of one image file."""
    video_bytes: int = 32 * MIB
    """Of one video file."""
    images: int = 16
    """Stills of a request, of all its turns."""
    videos: int = 2
    frames: int = 64
    """Frames read of one video."""
    pixels: int = 32_000_000
    """Width x height of a still. Read from the header, before anything is decoded."""
    video_pixels: int = 64_000_000
    """Width x height x frames read of a video, which are held at once."""
    video_seconds: float = 600.0
    decode_seconds: float = 30.0
    """In which the frames of a video must have been decoded."""
    turns: int = 128
    characters: int = 200_000
    """Of all text."""
    prompt_tokens: int = 16_384
    """Text and visual tokens; what the model itself can read is a second limit."""
    new_tokens: int = 1024
    """Of an answer; also the default where a request does not say."""
    choices: int = 8
    """Answers of one request (`n`); each takes a place in the queue and a row of the batch."""
    seconds: float = 120.0
    """From acceptance to the last token.

    An answer under way ends there; a request that still waits is refused.
    """

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Limits of the number of requests at a time."""

    running: int = 32
    """Answered side by side, in one batch."""
    waiting: int = 96
    """Accepted beyond those. The next one is refused with 429."""
    retry_after_seconds: int = 2
    """What a refused client is told to wait at least; more where the queue takes longer."""
    prefill_tokens: int = 8192
    """Prompts that join the batch in one go have at most so many tokens (padding included); one
    prompt may have more.
    """
    batch_tokens: int = 49_152
    """Rows x the longest row, prompt and answer, of the whole batch: the memory of its keys and
    values.

    One row may have more.
    """
    held_bytes: int = 512 * MIB
    """Of the bodies of all requests in the house, and once more of the images and videos in
    them, fetched ones included.
    """
    preparers: int = 2
    """Threads that decode images and videos."""

    def __post_init__(self) -> None:
        _check_positive(self, zero=("waiting",))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A server."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    """The model's name in the API; None: the name of its folder."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that images and videos may be fetched from; empty: none.

    Private addresses are never fetched from.
    """
    fetch_seconds: float = 10.0
    """For all that one request names."""
    api_key: str | None = field(default=None, repr=False)
    """Clients must send it; `m3 serve` takes it from a file or from the environment
    (M3_API_KEY).
    """
    ui: bool = False
    """The web page, at /ui."""
    cache_bytes: int = 256 * MIB
    """Features of images that are kept for the next request."""
    shutdown_seconds: int = 150
    """How long accepted requests may take to finish once the server is told to end."""
    limits: Limits = field(default_factory=Limits)
    queue: Queue = field(default_factory=Queue)

    def __post_init__(self) -> None:
        _check_positive(self, zero=("cache_bytes", "port"))
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip()
        ):
            raise ValueError(
                "the API key must be one line of printable ASCII characters, and not empty"
            )


def behind(settings: Settings, name: str) -> Settings:
    """Settings of one model behind a router, which has checked the key already."""
    return replace(settings, name=name, api_key=None, ui=False)


def _check_positive(settings: Limits | Queue | Settings, zero: tuple[str, ...] = ()) -> None:
    for settings_field in fields(settings):
        field_value = vars(settings)[settings_field.name]
        if type(field_value) in (int, float) and (
            field_value < 0 or (field_value == 0 and settings_field.name not in zero)
        ):
            raise ValueError(
                f"{settings_field.name} is {field_value}; expected "
                f"{'0 or more' if settings_field.name in zero else 'more than 0'}"
            )


def read_key(file: Path | None) -> str | None:
    """From the file, else from the environment.

    Never from the command line, which every user of the machine can read.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    api_key = file.read_text(encoding="utf-8").strip()
    if not api_key:
        raise ValueError(f"{file}: the file is empty; expected the API key")
    return api_key
