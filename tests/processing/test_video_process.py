"""Videos are decoded in a process of their own: what ends or holds it is an error of that video
alone.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from damaged_videos import damaged
from videos import write_video

from m3.processing import video_process
from m3.processing.video import Sampling, load_video
from m3.processing.video_process import VideoProcess, VideoProcessError, VideoProcesses

PATIENCE = 120.0
"""Seconds for a file that is read at once, or late on a machine with other work."""
REQUEST = {"name": "a video", "path": None, "sampling": {"num_frames": 2}}
REQUEST["limits"] = {"pixels": 10**6, "seconds": 100.0, "frames": 8, "pixels_in_all": None}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(
        tmp_path_factory.mktemp("video") / "long.mp4", frames=2000, fps=25
    ).read_bytes()


def test_a_process_is_kept_for_the_next_video(video: Path) -> None:
    processes = VideoProcesses()
    for _ in range(3):
        answer, pixels = processes.decode(REQUEST, video.read_bytes(), PATIENCE)
        assert (len(answer["times"]), [len(rgb) for rgb in pixels]) == (2, [64 * 48 * 3] * 2)
    (process,) = processes._idle
    processes.end()
    assert process._process.returncode == -signal.SIGKILL


def test_a_crash_is_an_error_of_its_video(
    video: Path, long_video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = VideoProcesses()
    processes.decode(REQUEST, video.read_bytes(), PATIENCE)
    (process,) = processes._idle
    read = process._read

    def crash_first() -> bytes:
        os.kill(process._process.pid, signal.SIGSEGV)
        while process._answers.read(2**16):  # where it was quicker, its answer is in the pipe
            pass
        return read()

    monkeypatch.setattr(process, "_read", crash_first)
    with pytest.raises(VideoProcessError, match=r"the decoder crashed on it \(exit code -11\)"):
        processes.decode(REQUEST, long_video, PATIENCE)
    assert processes._idle == []
    assert len(processes.decode(REQUEST, video.read_bytes(), PATIENCE)[1]) == 2
    processes.end()


def test_a_process_that_died_while_it_waited_costs_nothing(video: Path) -> None:
    processes = VideoProcesses()
    processes.decode(REQUEST, video.read_bytes(), PATIENCE)
    (process,) = processes._idle
    process._process.kill()
    process._process.wait()
    assert len(processes.decode(REQUEST, video.read_bytes(), PATIENCE)[1]) == 2
    processes.end()


def test_decoding_without_end_is_ended(long_video: bytes) -> None:
    with pytest.raises(
        ValueError,
        match=r"video of [0-9,]+ bytes: decoding it took longer than 0.01 s. Copy or "
        r"download it",
    ):
        load_video(long_video, Sampling(num_frames=500), decode_seconds=0.01)


def test_a_late_answer_is_called_late_while_the_timer_still_runs(
    long_video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that ended the process may go on only after the one that waited for an answer."""
    process, told = VideoProcess(), threading.Event()
    kill = process._process.kill

    def kill_and_rest() -> None:
        kill()
        if threading.current_thread() is not threading.main_thread():
            told.wait(PATIENCE)

    monkeypatch.setattr(process._process, "kill", kill_and_rest)
    with pytest.raises(VideoProcessError, match="longer than 0.001 s"):
        process.decode(REQUEST, long_video, 0.001)
    told.set()


def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_process, "MEMORY", 2**28)
    process = VideoProcess()
    with pytest.raises(VideoProcessError, match="the decoder crashed on it"):
        process.decode(REQUEST, bytes(300 * 2**20), PATIENCE)


def test_many_threads_have_processes_of_their_own(video: Path) -> None:
    results: list[tuple[float, ...]] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(load_video(video, decode_seconds=PATIENCE).times)
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(set(results)) == 1
    assert len(video_process.VIDEO_PROCESSES._idle) <= video_process.MOST_IDLE


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_processes_of_its_own(video: Path) -> None:
    expected = load_video(video).times
    idle = len(video_process.VIDEO_PROCESSES._idle)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            is_new = not video_process.VIDEO_PROCESSES._idle
            code = 0 if is_new and load_video(video).times == expected else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(video_process.VIDEO_PROCESSES._idle) == idle >= 1
    assert load_video(video).times == expected


ANSWERS = {
    "no JSON": "write(struct.pack('<Q', 3) + b'abc')",
    "a number beyond all": "write(struct.pack('<Q', 2**63 + 5))",
    "sixteen GiB": "write(struct.pack('<Q', 2**34))",
    "noise": "write(os.urandom(100_000))",
    "half an answer": "write(struct.pack('<Q', 30) + b'{')\nsys.exit(3)",
    "nothing": "sys.exit(0)",
    "a picture that does not come": """
answer = b'{"seconds": 1, "times": [0], "sizes": [[2, 2]]}'
write(struct.pack('<Q', len(answer)) + answer)
os.kill(os.getpid(), 11)""",
}


@pytest.mark.parametrize("code", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_is_an_error_of_its_video(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    script = tmp_path / "decoder.py"
    start = "import os, struct, sys, time\nsys.stdin.buffer.read(8)\n"
    write = "def write(content):\n    sys.stdout.buffer.write(content)\n    sys.stdout.buffer.flush()\n\n"
    script.write_text(f"{start}{write}{code}\ntime.sleep(600)\n")
    processes = VideoProcesses()
    with monkeypatch.context() as patch:
        patch.setattr(video_process.video_frames, "__file__", str(script))
        with pytest.raises(VideoProcessError, match="the decoder crashed on it"):
            processes.decode(REQUEST, video.read_bytes(), PATIENCE)
    assert processes._idle == []
    assert len(processes.decode(REQUEST, video.read_bytes(), PATIENCE)[1]) == 2
    processes.end()


def is_alive(process: int) -> bool:
    """Neither gone nor dead and unread."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("place", ["waiting", "decoding"])
def test_a_process_ends_with_its_owner(video: Path, tmp_path: Path, place: str) -> None:
    """Also where that is killed, and the process is in the middle of a file."""
    script = tmp_path / "decoder.py"
    script.write_text(f"""
import runpy, sys, time
runpy.run_path({video_process.video_frames.__file__!r})["_limit"](2**32, int(sys.argv[2]))
time.sleep(600)
""")
    code = f"""
import threading, time
from m3.processing import video_process
if {place == "decoding"}:
    video_process.video_frames.__file__ = {str(script)!r}
process = video_process.VideoProcess()
print(process._process.pid, flush=True)
if {place == "decoding"}:
    process.decode({REQUEST!r}, b"", 600.0)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    process = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    while is_alive(process):  # the limit of a test's time ends it
        time.sleep(0.05)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever their damage does to the decoder: pictures or a sentence, and never the end of
    this process.
    """
    read, refusals = 0, []
    for content in damaged(tmp_path, 160, seed=1):
        try:
            read += bool(load_video(content, Sampling(num_frames=4), decode_seconds=30.0).frames)
        except ValueError as error:
            refusals.append(str(error))
    assert all(text.startswith("video of ") for text in refusals)
    assert min(read, len(refusals)) > 10
