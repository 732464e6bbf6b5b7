"""`m3 bench sweep`: a sweep of all scales against the largest scale alone, and against one process per scale."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from m3.bench.timing import alternate
from m3.evaluation import sweep


def main(argv: list[str]) -> int:
    """Prints seconds and their ratios. Every sweep starts from an empty store."""
    parser = argparse.ArgumentParser(prog="m3 bench sweep", description=__doc__)
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument("--tasks", default="m3_tiny")
    parser.add_argument("--scales", default="1,4,9,36,144")
    parser.add_argument("--limit", type=int, default=50, help="documents of each task")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args(argv)
    scales = sorted(int(scale) for scale in arguments.scales.split(","))
    common = [arguments.model, "--tasks", arguments.tasks, "--limit", str(arguments.limit), "--no-latency"]

    def inside(chosen: Sequence[int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = sweep.main([*common, "--scales", _joined(chosen), "--out", folder])
            if code:
                raise RuntimeError(f"the sweep failed with code {code}")

    every, largest = alternate([lambda: inside(scales), lambda: inside(scales[-1:])], arguments.repetitions)
    together = processes(common, [scales])
    apart = processes(common, [[scale] for scale in scales])
    print(f"{len(scales)} scales {scales}, {arguments.limit} documents per task, {arguments.repetitions} repetitions")
    print(f"in one process:  all scales {every.median:.1f} s, {scales[-1]} alone {largest.median:.1f} s")
    print(f"as commands:     one for all scales {together:.1f} s, one per scale {apart:.1f} s")
    print(f"all scales cost {every.median / largest.median:.2f}x the largest alone")
    print(f"one process per scale costs {apart / together:.2f}x one process for all")
    return 0


def processes(common: Sequence[str], groups: Sequence[Sequence[int]]) -> float:
    """Seconds that the groups take, one `m3 sweep` after the other."""
    start = time.perf_counter()
    for group in groups:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "m3.cli",
                "sweep",
                *common,
                "--scales",
                _joined(group),
                "--out",
                str(Path(folder)),
            ]
            subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def _joined(scales: Sequence[int]) -> str:
    return ",".join(map(str, scales))
