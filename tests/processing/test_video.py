"""Files to frames: which ones, upright, within limits; and everything that is no video."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from videos import colour, write_sound, write_video

from m3 import optional as packages
from m3.processing.video import MAX_FRAMES, Sampling, collage, load_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s, 24 frames."""
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4")


def near(picture: Image.Image, wanted: tuple[int, int, int], tolerance: int = 12) -> bool:
    """At the lower right corner, within what the codec loses."""
    got = picture.getpixel((picture.width - 4, picture.height - 4))
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < tolerance


@pytest.mark.parametrize(
    ("sampling", "times"),
    [
        (Sampling(num_frames=6), [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]),
        (Sampling(fps=2), [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]),
        (Sampling(num_frames=1), [1.5]),
        (
            Sampling(),
            [0.125, 0.5, 0.875, 1.25, 1.625, 2.0, 2.375, 2.75],
        ),  # what is on the screen in the middle of 0.375 s
        (Sampling(num_frames=100), [n / 8 for n in range(24)]),  # no frame twice
    ],
    ids=str,
)
def test_frames_are_those_on_the_screen_in_the_middle_of_equal_stretches(
    video: Path, sampling: Sampling, times: list[float]
) -> None:
    read = load_video(video, sampling)
    assert read.seconds == pytest.approx(3.0)
    assert read.times == pytest.approx(times)
    assert all(
        near(p, colour(round(t * 8), 24)) for p, t in zip(read.frames, read.times, strict=True)
    )


def test_bytes_and_other_containers_give_the_same_frames(video: Path, tmp_path: Path) -> None:
    times = load_video(video).times
    assert load_video(video.read_bytes()).times == times
    assert load_video(write_video(tmp_path / "short.mkv")).times == pytest.approx(times, abs=0.01)
    assert load_video(write_video(tmp_path / "short.avi")).times == pytest.approx(times, abs=0.01)


@pytest.mark.parametrize("suffix", ["flv", "ts", "mov", "mpg", "asf"])
def test_every_container_is_read(suffix: str, tmp_path: Path) -> None:
    """Its streams may appear only after it was opened (FLV, MPEG-TS); an option given to each of
    them would end the process.
    """
    codec = {"flv": "flv1", "ts": "mpeg2video", "mpg": "mpeg2video"}.get(suffix, "mpeg4")
    path = write_video(tmp_path / f"short.{suffix}", fps=25, codec=codec)
    read = load_video(path, Sampling(num_frames=4))
    assert all(
        near(p, colour(round(t * 25), 24), 40) for p, t in zip(read.frames, read.times, strict=True)
    )
    assert len(read.frames) == 4


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (suffix, codec)
        for suffix in ("avi", "asf", "mp4", "mkv", "ts")
        for codec in ("libx264", "mpeg4")
    ]
    + [("flv", "libx264")],
)
def test_frames_that_are_stored_out_of_order_come_in_order(
    suffix: str, codec: str, tmp_path: Path
) -> None:
    """AVI and ASF say when a frame is decoded, not when it is shown."""
    path = write_video(tmp_path / f"b.{suffix}", codec=codec, codec_options={"bf": "3"})
    every = load_video(path, Sampling(num_frames=200))
    assert len(every.frames) == 24
    assert all(a < b for a, b in itertools.pairwise(every.times))
    reds = [picture.getpixel((60, 44))[0] for picture in every.frames]
    assert all(a < b for a, b in itertools.pairwise(reds))
    if suffix != "asf":  # it says that the video is longer than its frames
        eight = load_video(path, Sampling(num_frames=8))
        assert all(near(p, colour(1 + 3 * k, 24), 30) for k, p in enumerate(eight.frames))


KINDS = [
    *((suffix, "libx264") for suffix in ("mp4", "mov", "mkv", "avi", "ts", "flv", "asf")),
    *((suffix, "mpeg4") for suffix in ("mp4", "mkv", "avi", "ts", "asf")),
    *((suffix, "mpeg2video") for suffix in ("mpg", "ts", "avi", "mkv")),
    ("wmv", "wmv2"),
    ("flv", "flv1"),
]
HELD = [0, 4, 9, 10, 11, 30, 31, 90, 91, 92, 93, 94]
"""A screen recording: frames that stay for seconds."""
NO_TIMES = ("mpg",)
"""The container has frames at one rate alone."""
TOO_SHORT = ("ts",)
"""Five packets are no stream to ffmpeg."""


EACH = [
    pytest.param(suffix, codec, ticks, id=f"{suffix}-{codec}-{name}")
    for suffix, codec in KINDS
    for name, ticks in (("regular", range(24)), ("held", HELD), ("single", [0]))
    if not (name == "held" and suffix in NO_TIMES)
    and not (name == "single" and suffix in TOO_SHORT)
]


@pytest.mark.parametrize(("suffix", "codec", "ticks"), EACH)
def test_all_frames_come_in_order_at_their_times(
    suffix: str, codec: str, ticks: Sequence[int], tmp_path: Path
) -> None:
    options = {"bf": "2"} if codec in ("libx264", "mpeg4", "mpeg2video") else None
    path = write_video(
        tmp_path / f"clip.{suffix}", len(ticks), 25, codec=codec, ticks=ticks, codec_options=options
    )
    read = load_video(path, Sampling(num_frames=1000))
    assert read.times == pytest.approx([tick / 25 for tick in ticks], abs=0.011)
    assert all(before < after for before, after in itertools.pairwise(read.times))
    reds = [picture.getpixel((60, 44))[0] for picture in read.frames]
    assert reds == pytest.approx([colour(n, len(ticks))[0] for n in range(len(ticks))], abs=14)


def test_a_frame_that_avi_holds_is_no_end(tmp_path: Path) -> None:
    import av

    path = tmp_path / "held.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, time in enumerate([0, 40, 90, 91, 140]):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour(index, 5)))
            frame.pts = time
            for packet in stream.encode(frame):
                packet.duration = 60 if index == 4 else 0
                container.mux(packet)
        for packet in stream.encode():
            packet.duration = 60
            container.mux(packet)
    read = load_video(path, Sampling(num_frames=40))
    assert read.seconds == 20.0
    with pytest.raises(ValueError, match="the video is cut short: it has [0-9,]+ bytes of"):
        load_video(path.read_bytes()[:-700])
    # what stands still for 0.1 s is not met
    assert read.times == pytest.approx([0.0, 4.0, 9.1, 14.0])


def test_the_list_of_containers_is_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(ValueError, match="not a video that can be read"):
        load_video(path)


def test_a_long_video_is_jumped_through_to_the_same_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", frames=300, fps=5)
    # 20 s apart: further than what is decoded through
    read = load_video(path, Sampling(num_frames=3))
    assert read.times == pytest.approx([10.0, 30.0, 50.0])
    assert all(
        near(p, colour(round(t * 5), 300)) for p, t in zip(read.frames, read.times, strict=True)
    )


def test_a_collage_is_one_picture_of_six_in_reading_order(video: Path) -> None:
    read = load_video(video, Sampling(collage=True))
    (grid,) = read.frames
    assert grid.size == (2 * 64, 3 * 48)
    single = load_video(video, Sampling(num_frames=6)).frames
    for place, picture in enumerate(single):
        left, top = place % 2 * 64, place // 2 * 48
        assert list(grid.crop((left, top, left + 64, top + 48)).tobytes()) == list(
            picture.tobytes()
        )
    with pytest.raises(ValueError, match="7 pictures do not fit into 3 x 2"):
        collage([Image.new("RGB", (4, 4))] * 7)


def test_a_portrait_of_a_telephone_is_upright(video: Path) -> None:
    """The file says "turn a quarter clockwise", as telephones write it: the white quarter moves
    to the upper right.
    """
    one, none = (0x10000).to_bytes(4), bytes(4)
    plain = one + none * 3 + one
    turned = none + one + none + (2**32 - 0x10000).to_bytes(4) + none
    content = video.read_bytes()
    header = content.index(b"tkhd")
    place = content.index(plain, header)
    picture = load_video(
        content[:place] + turned + content[place + len(turned) :], Sampling(num_frames=1)
    ).frames[0]
    assert picture.size == (48, 64)
    assert min(picture.getpixel((40, 6))) > 200
    assert min(picture.getpixel((6, 6))) < 60


def broken(video: Path, folder: Path) -> dict[str, tuple[object, str]]:
    content = video.read_bytes()
    whole = write_video(folder / "stream.mp4", frames=80, movflags="faststart").read_bytes()
    film, sound = (
        write_video(folder / "film.mkv").read_bytes(),
        write_sound(folder / "sound.mkv").read_bytes(),
    )
    empty = folder / "empty.mp4"
    empty.touch()
    return {
        "cut": (content[: len(content) // 2], "not a video that can be read, or damaged"),
        "cut behind its index": (whole[: len(whole) // 2], "the video is cut short: it ends after"),
        "text": (b"hello" * 100, "not a video that can be read, or damaged (Invalid data found"),
        "playlist": (
            f"#EXTM3U\n#EXTINF:3,\n{video.as_uri()}\n#EXT-X-ENDLIST\n".encode(),
            "not a video that can be read",
        ),
        "empty": (empty, "the video file is empty (0 bytes)"),
        "no bytes": (b"", "the video file is empty (0 bytes)"),
        "nothing there": (folder / "none.mp4", "no such video file (looked from"),
        "folder": (folder, "is a folder, expected a video file"),
        "address": ("https://example.org/a.mp4", "network addresses are not fetched"),
        "protocol": (f"concat:{video}", "no such video file"),
        "a codec that there is not": (
            film.replace(b"V_MPEG4/ISO/ASP", b"V_NOBODYS/CODEC"),
            "there is no decoder for the video",
        ),
        "a sound that there is no codec for": (
            sound.replace(b"A_AAC", b"A_ZZZ"),
            "no video in this file, it holds audio",
        ),
        "sound": (write_sound(folder / "sound.mp4"), "no video in this file, it holds audio"),
    }


def test_what_is_no_whole_video_is_refused(video: Path, tmp_path: Path) -> None:
    cases = broken(video, tmp_path)
    assert len(cases) == 13
    for source, message in cases.values():
        with pytest.raises(ValueError, match=re.escape(message)):
            load_video(source)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mkv", "mpeg4"), ("webm", "libvpx"), ("flv", "flv1")]
)
def test_a_cut_file_is_refused_whose_stream_states_no_length(
    suffix: str, codec: str, tmp_path: Path
) -> None:
    content = write_video(tmp_path / f"whole.{suffix}", frames=80, codec=codec).read_bytes()
    assert load_video(content).seconds == pytest.approx(10.0, abs=0.15)
    with pytest.raises(ValueError, match=r"cut short: it ends after \d\.\d s of (9\.9|10\.0) s"):
        load_video(content[: len(content) * 4 // 5])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "asf", "avi", "ts", "mpg"])
def test_sound_that_is_longer_is_no_cut(suffix: str, tmp_path: Path) -> None:
    codec = {"mpg": "mpeg1video"}.get(suffix, "mpeg4")
    path = write_video(tmp_path / f"long.{suffix}", fps=25, codec=codec, sound_seconds=3.0)
    read = load_video(path, Sampling(num_frames=300))
    assert read.times == pytest.approx([n / 25 for n in range(24)], abs=0.011)


def test_frames_that_grow_on_the_way_are_refused() -> None:
    """VP8 says its size in every key frame, whatever the header does; here a second of either
    size.
    """
    growing = Path(__file__).parents[1] / "fixtures" / "videos" / "growing.webm"
    with pytest.raises(
        ValueError, match="a frame is 320 x 240 pixels, where the video says 64 x 48"
    ):
        load_video(growing, Sampling(num_frames=4))


def test_limits(video: Path) -> None:
    with pytest.raises(
        ValueError, match="its frames are 64 x 48 = 3,072 pixels, more than the limit of 3,000"
    ):
        load_video(video, max_pixels=3000)
    with pytest.raises(ValueError, match="the video is 3 s long, more than the limit of 2 s"):
        load_video(video, max_seconds=2.0)
    with pytest.raises(
        ValueError,
        match="1000 frames per second over 3.0 s are 3000 frames, more than the limit "
        f"of {MAX_FRAMES}",
    ):
        load_video(video, Sampling(fps=1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 4, "fps": 1.0}, "give num_frames (4) or fps (1.0), not both"),
        ({"num_frames": 0}, "num_frames is 0; expected a whole number from 1 to 1024"),
        ({"num_frames": 2000}, "num_frames is 2000; expected a whole number from 1 to 1024"),
        ({"num_frames": True}, "num_frames is True; expected a whole number"),
        ({"fps": float("nan")}, "fps is nan; expected a number above 0"),
        ({"fps": float("inf")}, "fps is inf; expected a number above 0"),
        ({"fps": -1}, "fps is -1; expected a number above 0"),
        ({"fps": True}, "fps is True; expected a number above 0"),
        ({"fps": 0.0}, "fps is 0.0; expected a number above 0"),
        ({"fps": 1.0, "collage": True}, "a collage always has 6 frames"),
    ],
)
def test_samplings_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**options)


def test_without_pyav_the_extra_is_named(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"needs the package av, which is not installed: pip install -e "
        r"'.\[video\]'",
    ):
        load_video(video)
