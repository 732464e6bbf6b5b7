"""Processes that decode videos, so that a file that ends its decoder ends no server and no training
run.

in: what to decode (m3/processing/video_frames.py:serve_requests); out: its answer, or a
    `VideoProcessError`.

Each process decodes one video at a time and is kept for the next. It imports PyAV, Pillow and
nothing of M3: it starts in 0.15 s and takes 50 MB. One that dies or does not answer in time is
ended and another started for the next video. A process ends when its owner does, in the middle of a
video too.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

from m3.processing import video_frames
from m3.processing.video_frames import read_block, write_block

MEMORY = 8 * 2**30
"""Bytes of address space of a process; a video that needs more is refused."""
MOST_ANSWER = 2**31
"""Bytes of a picture; six of the largest size as one have half of it."""
MOST_IDLE = 4
"""Processes kept for the next video."""


class VideoProcessError(Exception):
    """The process that decoded a video ended or took too long; the text says which, for a
    sentence after the file's name.
    """


class VideoProcess:
    """One process, for one video at a time."""

    def __init__(self) -> None:
        command = [
            sys.executable,
            "-P",
            str(Path(video_frames.__file__)),
            str(MEMORY),
            str(os.getpid()),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._requests = cast(BinaryIO, self._process.stdin)  # pipes were asked for
        self._answers = cast(BinaryIO, self._process.stdout)

    def decode(
        self, request: dict[str, Any], content: bytes, seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """The answer, and the pixels of its pictures. After an error the process is ended.

        Raises:
            VideoProcessError: the process ended, or did not answer within `seconds`.
        """
        late = threading.Event()
        timer = threading.Timer(seconds, self._end_late, [late])
        timer.start()
        is_whole = False
        try:
            answer, pixels = self._exchange({**request, "seconds": seconds}, content)
            is_whole = True
        except (OSError, EOFError, json.JSONDecodeError) as error:
            self._wait_or_end()
            code = self._process.returncode
            words = (
                f"decoding it took longer than {seconds:g} s"
                if late.is_set()
                else f"the decoder crashed on it (exit code {code})"
            )
            raise VideoProcessError(words) from error
        finally:
            timer.cancel()
            if not is_whole:
                self.end()
        return answer, pixels

    def _end_late(self, late: threading.Event) -> None:
        """On the timer's thread; `late` is set first, since whoever waits for an answer goes on
        with the kill.
        """
        late.set()
        self._process.kill()

    def _exchange(
        self, request: dict[str, Any], content: bytes
    ) -> tuple[dict[str, Any], list[bytes]]:
        write_block(self._requests, json.dumps(request).encode())
        write_block(self._requests, content)
        self._requests.flush()
        answer = json.loads(self._read())
        return answer, [self._read() for _ in answer.get("sizes", ())]

    def _read(self) -> bytes:
        block = read_block(self._answers, MOST_ANSWER)
        if block is None:
            raise EOFError
        return block

    @property
    def has_ended(self) -> bool:
        """Tell whether something ended it while it waited."""
        return self._process.poll() is not None

    def _wait_or_end(self) -> None:
        """After what is no answer: its own end is near, and says more than ours, or does not
        come.
        """
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Ends it at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # of what it did not read any more
            self._requests.close()
        self._answers.close()


class VideoProcesses:
    """Processes that wait for videos; as many decode at a time as threads ask.

    A process that was forked (a data loader's worker) begins with none: those of its parent answer
    the parent alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[VideoProcess] = []
        self._owner = os.getpid()
        atexit.register(self.end)
        if sys.platform != "win32":
            os.register_at_fork(after_in_child=self._forget)

    def decode(
        self, request: dict[str, Any], content: bytes, seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """See `VideoProcess.decode`."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None or process.has_ended:
            process = VideoProcess()
        answer = process.decode(request, content, seconds)
        with self._lock:
            is_kept = len(self._idle) < MOST_IDLE
            if is_kept:
                self._idle.append(process)
        if not is_kept:
            process.end()
        return answer

    def end(self) -> None:
        """Ends those that wait."""
        if self._owner != os.getpid():
            return
        with self._lock:
            waiting, self._idle = self._idle, []
        for process in waiting:
            process.end()

    def _forget(self) -> None:
        self._lock, self._idle = threading.Lock(), []


VIDEO_PROCESSES = VideoProcesses()
"""Those of this process."""
