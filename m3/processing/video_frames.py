"""Frames of a video file, decoded by PyAV: a few upright RGB pictures, each with its time.

In: a path or the bytes of a file, and how to sample. Out: `Video`. A frame stands for a stretch of
time: of `n` frames the k-th is what the screen shows in the middle of the k-th of n equal
stretches. What is shown twice is taken once, so a short video gives fewer frames than were asked
for.

Only local files, only the containers of `CONTAINERS`, so that no playlist makes ffmpeg open an
address. Limits: pixels per frame, seconds, frames. This file imports nothing of M3: run by itself
it is the process in which m3/processing/video_process.py has videos decoded, since a damaged file
may end the process that decodes it.
"""

import io
import json
import math
import os
import re
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "flv", "ogg", "asf")
"""ffmpeg's names of the demuxers that a file may choose from.

Left out on purpose: those that open further files.
"""
MAX_FRAMES = 1024
MAX_THREADS = 4
"""That decode one video; each holds frames of its own."""
JUMP_BACK_S = 1.0
"""Times that go back so far begin anew (joined streams, a clock that ran over); they are counted
on from the last one.
"""
USUAL_RATE = 25
SEEK_BEYOND_S = 10.0
"""A gap between wanted frames that is skipped by a jump to a key frame; what is nearer is
decoded through.
"""
DECODING_TIMES = ("avi", "asf")
"""Containers that say when a packet is decoded, not when its frame is shown."""
ESTIMATED_LENGTHS = ("mpeg",)
"""Containers that store no length, and that ffmpeg guesses too short a one for."""
COLLAGE = (3, 2)
"""Rows and columns of IG-VLM's image grid (https://arxiv.org/abs/2403.18406), which M3 reads
videos as.
"""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Frames to take: `num_frames` spread evenly, or `fps` per second; not both.

    `collage`: six of them as one picture.
    """

    num_frames: int | None = None
    fps: float | int | None = None
    collage: bool = False

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError(f"give num_frames ({self.num_frames}) or fps ({self.fps}), not both")
        if self.collage and (self.num_frames is not None or self.fps is not None):
            raise ValueError(
                f"a collage always has {COLLAGE[0] * COLLAGE[1]} frames: leave out "
                "num_frames and fps"
            )
        if self.num_frames is not None and not (
            _is_whole(self.num_frames) and 1 <= self.num_frames <= MAX_FRAMES
        ):
            raise ValueError(
                f"num_frames is {self.num_frames!r}; expected a whole number from 1 to {MAX_FRAMES}"
            )
        if self.fps is not None and not (
            isinstance(self.fps, Real)
            and not isinstance(self.fps, bool)
            and 0 < self.fps < math.inf
        ):
            raise ValueError(f"fps is {self.fps!r}; expected a number above 0")

    def times(self, seconds: float, max_frames: int = MAX_FRAMES) -> list[float]:
        """The moments to look at, in seconds. 8 of them where nothing is said."""
        number = COLLAGE[0] * COLLAGE[1] if self.collage else self.num_frames or 8
        if self.fps is not None:
            number = max(round(min(seconds * self.fps, 1e9)), 1)  # the product may be infinite
            if number > max_frames:
                raise ValueError(
                    f"{self.fps:g} frames per second over {seconds:.1f} s are {number} frames, "
                    "more than the limit of "
                    f"{max_frames}: lower fps, or ask for num_frames"
                )
        if number > max_frames:
            raise ValueError(
                f"{number} frames of a video were asked for, more than the limit of {max_frames}"
            )
        return [(k + 0.5) * seconds / number for k in range(number)]


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


@dataclass(frozen=True)
class Video:
    """Content read from a video: its pictures (one where they are put into a collage), when each
    was shown, its length.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class VideoLimits:
    """Limits beyond which a video is refused: pixels of one frame, seconds, frames, pixels of
    all frames that are read.
    """

    pixels: int
    seconds: float
    frames: int
    pixels_in_all: int | None = None


def decode_video(file: BinaryIO, name: str, sampling: Sampling, limits: VideoLimits) -> Video:
    """Decode the frames that `sampling` asks for.

    Raises:
        ValueError: no video in it, damaged data, or a limit is passed; the text says which.
    """
    from av.error import FFmpegError

    try:
        shown, seconds = _read(file, name, sampling, limits)
    except (FFmpegError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, FFmpegError) else "its names are no text"
        raise ValueError(
            f"{name}: not a video that can be read, or damaged ({reason}). Copy or download it "
            "again"
        ) from error
    if not shown:
        raise ValueError(
            f"{name}: the video has no frame that can be decoded. Copy or download it again"
        )
    pictures, times = tuple(_upright(frame) for frame, _ in shown), tuple(time for _, time in shown)
    return Video(pictures, times, seconds)


def _read(
    file: BinaryIO, name: str, sampling: Sampling, limits: VideoLimits
) -> tuple[list[tuple["VideoFrame", float]], float]:
    """The frames with their times, and the length of the video."""
    _check_avi_size(file, name)
    seconds = _seconds(file, name, limits.pixels)
    if seconds > limits.seconds:
        raise ValueError(
            f"{name}: the video is {seconds:.0f} s long, more than the limit of "
            f"{limits.seconds:.0f} s: cut it first"
        )
    times = sampling.times(seconds, limits.frames)
    with closing(_opened(file)) as container:
        stream = _stream(container, name, limits.pixels)
        pixels = stream.codec_context.width * stream.codec_context.height * len(times)
        if limits.pixels_in_all is not None and pixels > limits.pixels_in_all:
            raise ValueError(
                f"{name}: {len(times)} of its frames have {pixels:,} pixels, more than the limit "
                f"of {limits.pixels_in_all:,}: ask for fewer frames, or shrink the video"
            )
        return list(_shown_at(container, stream, times, name)), seconds


def _opened(file: BinaryIO) -> "InputContainer":
    """From the beginning of the file: not every container can be wound back."""
    import av

    file.seek(0)
    # not `options`: those go to every stream too, and ffmpeg reads past their end where streams
    # appear late (FLV, MPEG-TS)
    return av.open(file, "r", container_options={"format_whitelist": ",".join(CONTAINERS)})


def _stream(container: "InputContainer", name: str, max_pixels: int) -> "VideoStream":
    from av.stream import Disposition

    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not moving:
        # their `type` is not asked for: without a decoder that ends the process
        streams = container.streams
        held = {"audio": streams.audio, "data": streams.data, "subtitles": streams.subtitles}
        kinds = [kind for kind, some in held.items() if some] or ["nothing"]
        raise ValueError(f"{name}: no video in this file, it holds {', '.join(kinds)}")
    stream = moving[0]
    if stream.codec_context is None:  # against PyAV's types
        raise ValueError(
            f"{name}: there is no decoder for the video in this file, or it is damaged. Convert it "
            "to H.264"
        )
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = min(os.cpu_count() or 1, MAX_THREADS)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: its frames are {width} x {height} = {width * height:,} pixels, more than the "
            f"limit of {max_pixels:,}"
        )
    return stream


def _seconds(file: BinaryIO, name: str, max_pixels: int) -> float:
    """Length of the video as the stream says, else the file, else its packets."""
    with closing(_opened(file)) as container:
        stream = _stream(container, name, max_pixels)
        if container.format.name not in ESTIMATED_LENGTHS:
            if stream.duration is not None and stream.time_base is not None and stream.duration > 0:
                return float(stream.duration * stream.time_base)
            if container.duration is not None and container.duration > 0:
                return container.duration / 1e6
        return _scanned_seconds(container, stream)


def _scanned_seconds(container: "InputContainer", stream: "VideoStream") -> float:
    """From the first to the last packet, or by their number where they have no times."""
    number, first, last = 0, math.inf, -math.inf
    for packet in container.demux(stream):
        at = packet.dts if packet.pts is None else packet.pts
        number += packet.size > 0
        if at is not None:
            first = min(first, _in_seconds(stream, at))
            last = max(last, _in_seconds(stream, at + (packet.duration or 0)))
    return last - first if last > first else number * _step(stream)


def _in_seconds(stream: "VideoStream", ticks: int) -> float:
    return float(ticks * stream.time_base) if stream.time_base is not None else 0.0


def _step(stream: "VideoStream") -> float:
    """Seconds that a frame is usually shown."""
    rate = stream.average_rate or stream.guessed_rate or USUAL_RATE
    return 1 / float(rate) if rate > 0 else 1 / USUAL_RATE


def _shown_at(
    container: "InputContainer", stream: "VideoStream", times: Sequence[float], name: str
) -> Iterator[tuple["VideoFrame", float]]:
    """The frame on the screen at each of `times` (ascending), with its own time; each frame
    once.
    """
    # read once: the decoder sets it to what comes
    size = (stream.codec_context.width, stream.codec_context.height)
    is_decoding = container.format.name in DECODING_TIMES
    clock = _Clock(stream, is_decoding)
    frames = _timed(container, stream, clock, size, name)
    current = following = next(frames, None)
    last = -math.inf
    for wanted in times:
        if (
            following is not None
            and wanted - following[1] > SEEK_BEYOND_S
            and stream.time_base is not None
        ):
            container.seek(round((wanted + clock.start) / float(stream.time_base)), stream=stream)
            frames = _timed(container, stream, clock.again(), size, name)
            current = following = next(frames, None)
        while following is not None and following[1] <= wanted:
            current, following = following, next(frames, None)
        if current is not None and following is None and not is_decoding:
            _check_end(_stated_seconds(container, stream), *current, name)
        if current is not None and current[1] > last:
            last = current[1]
            yield current


def _stated_seconds(container: "InputContainer", stream: "VideoStream") -> float:
    """Length of the stream as its file states it; 0 where it does not."""
    if stream.duration and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if tag is not None:  # Matroska
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    is_alone = len(container.streams) == 1  # else the sound may be what is longest
    return (container.duration or 0) / 1e6 if is_alone else 0.0


def _check_end(stated: float, last: "VideoFrame", time: float, name: str) -> None:
    """Refuse a file that was cut: the last frame is on the screen until the stated end."""
    if last.time_base is None or not last.duration:
        return
    end = time + float(last.duration * last.time_base)
    if stated - end > max(0.5, 0.02 * stated):
        raise ValueError(
            f"{name}: the video is cut short: it ends after {end:.1f} s of {stated:.1f} s. Copy or "
            "download it again"
        )


def _check_avi_size(file: BinaryIO, name: str) -> None:
    """AVI gives every frame the same duration, held or not, but says at its start how large it
    is.
    """
    file.seek(0)
    head = file.read(12)
    size = file.seek(0, io.SEEK_END)
    stated = int.from_bytes(head[4:8], "little")
    is_avi = head[:4] == b"RIFF" and head[8:] == b"AVI "
    # written to a pipe, it does not know
    if is_avi and stated not in (0, 0xFFFFFFFF) and size < stated + 8:
        raise ValueError(
            f"{name}: the video is cut short: it has {size:,} bytes of {stated + 8:,}. Copy or "
            "download it again"
        )


class _Clock:
    """When frames are shown, ascending whatever the file says.

    They come in the order in which they are shown.

    `is_decoding`: the container knows only when a frame is decoded. The decoder gives a frame out
    with the time of the packet that it waited for, and it waits for the same number of packets each
    time: these times are right up to a constant.
    """

    def __init__(
        self, stream: "VideoStream", is_decoding: bool, start: float | None = None
    ) -> None:
        self._stream, self._is_decoding = stream, is_decoding
        self._step, self._shift, self._last = _step(stream), 0.0, -math.inf
        stated = (
            None
            if is_decoding or stream.start_time is None
            else _in_seconds(stream, stream.start_time)
        )
        self._start = stated if start is None else start

    @property
    def start(self) -> float:
        """The stream's own time of what is 0 s here."""
        return self._start or 0.0

    def again(self) -> "_Clock":
        """After a jump."""
        return _Clock(self._stream, self._is_decoding, self._start)

    def time(self, frame: "VideoFrame") -> float:
        """More than that of the frame before; counted on from there where the file has none, or
        one that goes back.
        """
        ticks = frame.dts if self._is_decoding else frame.pts
        if ticks is None:
            at = max(self._last + self._step, 0.0)
        else:
            own = _in_seconds(self._stream, ticks)
            self._start = own if self._start is None else self._start
            at = own - self._start + self._shift
        if at <= self._last:
            self._shift += self._last + self._step - at if self._last - at > JUMP_BACK_S else 0.0
            at = self._last + self._step
        self._last = at
        return at


def _timed(
    container: "InputContainer",
    stream: "VideoStream",
    clock: _Clock,
    size: tuple[int, int],
    name: str,
) -> Iterator[tuple["VideoFrame", float]]:
    """Each frame, and when it is shown.

    None is larger than `size` (width, height), as limits were told.
    """
    for frame in container.decode(stream):
        if frame.width * frame.height > size[0] * size[1]:
            raise ValueError(
                f"{name}: a frame is {frame.width} x {frame.height} pixels, where the video says "
                f"{size[0]} x {size[1]}. "
                "Convert it to one size"
            )
        yield frame, clock.time(frame)


def _upright(frame: "VideoFrame") -> Image.Image:
    """In RGB, turned as the file says that players should."""
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def serve_requests(requests: BinaryIO, answers: BinaryIO) -> None:
    """Decode videos until `requests` ends.

    A request is a JSON object in a block (its length in 8 bytes before it), {"name", "path",
    "sampling", "limits", "seconds"}, and the file in another, which is empty where there is a path.
    An answer is a JSON object, either {"error"} or {"seconds", "times", "sizes"}, and then the RGB
    pixels of each picture, a block each.
    """
    while (head := read_block(requests)) is not None:
        request = json.loads(head)
        content = read_block(requests)
        assert content is not None  # the file follows its request
        path = request["path"]
        _wake(math.ceil(request["seconds"]) + 5)
        try:
            sampling, limits = Sampling(**request["sampling"]), VideoLimits(**request["limits"])
            with (
                io.BytesIO(content) if path is None else open(path, "rb") as file
            ):  # ffmpeg gets no path: it would read an address
                video = decode_video(file, request["name"], sampling, limits)
        except (ValueError, MemoryError, OSError) as error:
            words = (
                str(error)
                or f"{request['name']}: decoding it takes more memory than there is for a video"
            )
            write_block(answers, json.dumps({"error": words}).encode())
        else:
            sizes = [picture.size for picture in video.frames]
            answer = {"seconds": video.seconds, "times": video.times, "sizes": sizes}
            write_block(answers, json.dumps(answer).encode())
            for picture in video.frames:
                write_block(answers, picture.tobytes())
        answers.flush()
        _wake(0)


def read_block(stream: BinaryIO, most: int = 2**62) -> bytes | None:
    """The next block; None where the stream ends, or speaks of more bytes than `most`."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    size = struct.unpack("<Q", length)[0]
    if size > most:
        return None
    content = stream.read(size)
    return content if len(content) == size else None


def write_block(stream: BinaryIO, content: bytes) -> None:
    """Its length in 8 bytes, then itself."""
    stream.write(struct.pack("<Q", len(content)))
    stream.write(content)


def _wake(seconds: int) -> None:
    """Ends this process after so many seconds, even where a decoder hangs and its owner is gone;
    0: not any more.
    """
    if sys.platform != "win32":
        signal.alarm(seconds)  # by default it ends the process


def _end_with_owner(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(0.5)
    os._exit(1)


def _limit(memory: int, owner: int) -> None:
    """Allocations beyond fail, which ends this process at worst; Windows has no such limits."""
    threading.Thread(target=_end_with_owner, args=(owner,), daemon=True).start()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve_requests(sys.stdin.buffer, answers)
