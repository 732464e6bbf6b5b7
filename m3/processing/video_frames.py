"""Frames of a video file, decoded by PyAV: a few upright RGB pictures, each with its time.

In: a path or the bytes of a file, and how to sample. Out: `Video`. A frame stands for a stretch of time: of `n` frames the
k-th is what the screen shows in the middle of the k-th of n equal stretches. What is shown twice is taken once, so a short
video gives fewer frames than were asked for.

Only local files, only the containers of `CONTAINERS`, so that no playlist makes ffmpeg open an address. Limits: pixels per frame,
seconds, frames. This file imports nothing of M3: run by itself it is the process in which m3/processing/video_process.py has
videos decoded, since a damaged file may end the process that decodes it.
"""

import io
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "flv", "ogg", "asf")
"""ffmpeg's names of the demuxers that a file may choose from. Left out on purpose: those that open further files."""
MAX_FRAMES = 1024
PROBED_PACKETS = 64
"""Packets whose times are looked at before a file's times are believed."""
SEEK_BEYOND_S = 10.0
"""A gap between wanted frames that is skipped by a jump to a key frame; what is nearer is decoded through."""
_DECODING_TIMES = frozenset({"avi", "asf"})
"""Containers that say when a packet is decoded, not when its frame is shown."""
COLLAGE = (3, 2)
"""Rows and columns of IG-VLM's image grid (https://arxiv.org/abs/2403.18406), which M3 reads videos as."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames: `num_frames` spread evenly, or `fps` per second; not both. `collage`: six of them as one picture."""

    num_frames: int | None = None
    fps: float | int | None = None
    collage: bool = False

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError(f"give num_frames ({self.num_frames}) or fps ({self.fps}), not both")
        if self.collage and (self.num_frames is not None or self.fps is not None):
            raise ValueError(f"a collage always has {COLLAGE[0] * COLLAGE[1]} frames: leave out num_frames and fps")
        if self.num_frames is not None and not (_is_whole(self.num_frames) and 1 <= self.num_frames <= MAX_FRAMES):
            raise ValueError(f"num_frames is {self.num_frames!r}; expected a whole number from 1 to {MAX_FRAMES}")
        if self.fps is not None and not (
            isinstance(self.fps, Real) and not isinstance(self.fps, bool) and self.fps > 0
        ):
            raise ValueError(f"fps is {self.fps!r}; expected a number above 0")

    def times(self, seconds: float, max_frames: int = MAX_FRAMES) -> list[float]:
        """The moments to look at, in seconds. 8 of them where nothing is said."""
        number = COLLAGE[0] * COLLAGE[1] if self.collage else self.num_frames or 8
        if self.fps is not None:
            number = max(round(min(seconds * self.fps, 1e9)), 1)  # the product may be infinite
            if number > max_frames:
                raise ValueError(
                    f"{self.fps:g} frames per second over {seconds:.1f} s are {number} frames, more than the limit of "
                    f"{max_frames}: lower fps, or ask for num_frames"
                )
        if number > max_frames:
            raise ValueError(f"{number} frames of a video were asked for, more than the limit of {max_frames}")
        return [(k + 0.5) * seconds / number for k in range(number)]


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


@dataclass(frozen=True)
class Video:
    """What is read of a video: its pictures (one where they are put into a collage), when each was shown, its length."""

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class VideoLimits:
    """What is refused beyond: pixels of one frame, seconds, frames, pixels of all frames that are read."""

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
            f"{name}: not a video that can be read, or damaged ({reason}). Copy or download it again"
        ) from error
    if not shown:
        raise ValueError(f"{name}: the video has no frame that can be decoded. Copy or download it again")
    pictures, times = tuple(_upright(frame) for frame, _ in shown), tuple(time for _, time in shown)
    return Video((collage(pictures),) if sampling.collage else pictures, times, seconds)


def collage(pictures: Sequence[Image.Image], rows: int = COLLAGE[0], columns: int = COLLAGE[1]) -> Image.Image:
    """The pictures side by side in reading order, all as large as the first; what is left over is black."""
    width, height = pictures[0].size
    if len(pictures) > rows * columns:
        raise ValueError(f"{len(pictures)} pictures do not fit into {rows} x {columns}")
    grid = Image.new("RGB", (columns * width, rows * height))
    for place, picture in enumerate(pictures):
        grid.paste(picture.resize((width, height)), (place % columns * width, place // columns * height))
    return grid


def _read(
    file: BinaryIO, name: str, sampling: Sampling, limits: VideoLimits
) -> tuple[list[tuple["VideoFrame", float]], float]:
    """The frames with their times, and the length of the video."""
    import av

    # not `options`: those go to every stream too, and ffmpeg reads past their end where streams appear late (FLV, MPEG-TS)
    container = av.open(file, "r", container_options={"format_whitelist": ",".join(CONTAINERS)})
    try:
        stream = _stream(container, name, limits.pixels)
        seconds = _seconds(container, stream)
        if seconds > limits.seconds:
            raise ValueError(
                f"{name}: the video is {seconds:.0f} s long, more than the limit of {limits.seconds:.0f} s: cut it first"
            )
        times = sampling.times(seconds, limits.frames)
        pixels = stream.codec_context.width * stream.codec_context.height * len(times)
        if limits.pixels_in_all is not None and pixels > limits.pixels_in_all:
            raise ValueError(
                f"{name}: {len(times)} of its frames have {pixels:,} pixels, more than the limit of "
                f"{limits.pixels_in_all:,}: ask for fewer frames, or shrink the video"
            )
        if "avi" in _formats(container):
            _check_avi_size(file, name)
        return list(_shown_at(container, stream, times, name)), seconds
    finally:
        container.close()


def _stream(container: "InputContainer", name: str, max_pixels: int) -> "VideoStream":
    from av.stream import Disposition

    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise ValueError(f"{name}: no video in this file, it holds {', '.join(kinds)}")
    stream = moving[0]
    stream.thread_type = "AUTO"
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: its frames are {width} x {height} = {width * height:,} pixels, more than the limit of {max_pixels:,}"
        )
    return stream


def _seconds(container: "InputContainer", stream: "VideoStream") -> float:
    """Length of the video: as the stream says, else the file, else the end of its last packet."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return container.duration / 1e6
    ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux(stream) if p.pts is not None]
    container.seek(0)
    return max(ends, default=0.0)


def _shown_at(
    container: "InputContainer", stream: "VideoStream", times: Sequence[float], name: str
) -> Iterator[tuple["VideoFrame", float]]:
    """The frame on the screen at each of `times` (ascending), with its own time; each frame once."""
    assert stream.time_base is not None  # a stream with packets has one
    start = float((stream.start_time or 0) * stream.time_base)
    size = stream.codec_context.width, stream.codec_context.height  # read once: the decoder sets it to what comes
    ordered = _times_in_order(container, stream)
    frames = _timed(container, stream, start, ordered, size, name)
    current = following = next(frames, None)
    taken: float | None = None
    for wanted in times:
        if ordered is None and following is not None and wanted - following[1] > SEEK_BEYOND_S:
            container.seek(round((wanted + start) / stream.time_base), stream=stream)
            frames = _timed(container, stream, start, None, size, name)
            current = following = next(frames, None)
        while following is not None and following[1] <= wanted:
            current, following = following, next(frames, None)
        if current is not None and following is None and "avi" not in _formats(container):
            _check_end(stream, *current, name)
        if current is not None and current[1] != taken:
            taken = current[1]
            yield current


def _check_end(stream: "VideoStream", last: "VideoFrame", time: float, name: str) -> None:
    """Where the stream says how long it is, its last frame stays on the screen until then; else the file was cut.

    A duration of 0 is none that is known.
    """
    if stream.duration is None or stream.time_base is None or last.time_base is None or not last.duration:
        return
    stated, end = float(stream.duration * stream.time_base), time + float(last.duration * last.time_base)
    if stated - end > max(0.5, 0.02 * stated):
        raise ValueError(
            f"{name}: the video is cut short: it ends after {end:.1f} s of {stated:.1f} s. Copy or download it again"
        )


def _formats(container: "InputContainer") -> list[str]:
    """ffmpeg's names of the format; several where they are read alike."""
    return container.format.name.split(",")


def _check_avi_size(file: BinaryIO, name: str) -> None:
    """AVI gives every frame the same duration, held or not, but says at its start how large it is."""
    place = file.tell()
    file.seek(0)
    stated = int.from_bytes(file.read(8)[4:], "little")
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    if stated not in (0, 0xFFFFFFFF) and size < stated + 8:  # written to a pipe, it does not know
        raise ValueError(
            f"{name}: the video is cut short: it has {size:,} bytes of {stated + 8:,}. Copy or download it again"
        )


def _times_in_order(container: "InputContainer", stream: "VideoStream") -> list[float] | None:
    """Times of the frames in the order in which they are shown, where packets do not say when; None where they do.

    AVI and ASF store when a packet is decoded, not when its frame is shown; where frames are reordered, ffmpeg guesses. Elsewhere
    times that ascend from packet to packet are a guess too. The decoder's order is right all the same, so the k-th frame is shown
    at the k-th time of decoding.
    """
    assert stream.time_base is not None  # a stream with packets has one
    packets = (packet for packet in container.demux(stream) if packet.size)
    first = list(islice(packets, PROBED_PACKETS))
    shown = [packet.pts for packet in first if packet.pts is not None]
    is_ascending = len(shown) > 2 and all(a < b for a, b in pairwise(shown))
    is_guessed = stream.codec_context.has_b_frames and (
        is_ascending or not _DECODING_TIMES.isdisjoint(_formats(container))
    )
    ordered: list[float] | None = None
    if is_guessed or len(shown) < len(first):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        decoded = [packet.dts for packet in (*first, *packets)]
        known = [dts for dts in decoded if dts is not None]
        if len(known) == len(decoded) and all(a < b for a, b in pairwise(known)):
            ordered = [float((dts - known[0]) * stream.time_base) for dts in known]
        else:
            ordered = [number / rate for number in range(len(decoded))]
    container.seek(0)
    return ordered


def _timed(
    container: "InputContainer",
    stream: "VideoStream",
    start: float,
    ordered: Sequence[float] | None,
    size: tuple[int, int],
    name: str,
) -> Iterator[tuple["VideoFrame", float]]:
    """Each frame, and when it is shown; times ascend. None is larger than `size` (width, height), as limits were told."""
    step = 1 / float(stream.average_rate or 25)
    last: float | None = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.width * frame.height > size[0] * size[1]:
            raise ValueError(
                f"{name}: a frame is {frame.width} x {frame.height} pixels, where the video says {size[0]} x {size[1]}. "
                "Convert it to one size"
            )
        if ordered is not None and number < len(ordered):
            time = ordered[number]
        elif ordered is None and frame.time is not None:
            time = frame.time - start
        else:
            time = 0.0 if last is None else last + step
        last = time if last is None or time > last else last + step
        yield frame, last


def _upright(frame: "VideoFrame") -> Image.Image:
    """In RGB, turned as the file says that players should."""
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def serve_requests(requests: BinaryIO, answers: BinaryIO) -> None:
    """Decode videos until `requests` ends.

    A request is a JSON object in a block (its length in 8 bytes before it), {"name", "path", "sampling", "limits"}, and the file
    in another, which is empty where there is a path. An answer is a JSON object,
    either {"error"} or {"seconds", "times", "sizes"}, and then the RGB pixels of each picture, a block each.
    """
    while (head := read_block(requests)) is not None:
        request = json.loads(head)
        content = read_block(requests)
        assert content is not None  # the file follows its request
        path = request["path"]
        try:
            sampling, limits = Sampling(**request["sampling"]), VideoLimits(**request["limits"])
            with (
                io.BytesIO(content) if path is None else open(path, "rb") as file
            ):  # ffmpeg gets no path: it would read an address
                video = decode_video(file, request["name"], sampling, limits)
        except (ValueError, MemoryError, OSError) as error:
            words = str(error) or f"{request['name']}: decoding it takes more memory than there is for a video"
            write_block(answers, json.dumps({"error": words}).encode())
        else:
            sizes = [picture.size for picture in video.frames]
            answer = {"seconds": video.seconds, "times": video.times, "sizes": sizes}
            write_block(answers, json.dumps(answer).encode())
            for picture in video.frames:
                write_block(answers, picture.tobytes())
        answers.flush()


def read_block(stream: BinaryIO) -> bytes | None:
    """The next block; None where the stream ends."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    size = struct.unpack("<Q", length)[0]
    content = stream.read(size)
    return content if len(content) == size else None


def write_block(stream: BinaryIO, content: bytes) -> None:
    """Its length in 8 bytes, then itself."""
    stream.write(struct.pack("<Q", len(content)))
    stream.write(content)


def _limit_memory(size: int) -> None:
    """Allocations beyond fail, which ends this process at worst; Windows has no such limit."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    _limit_memory(int(sys.argv[1]))
    serve_requests(sys.stdin.buffer, sys.stdout.buffer)
