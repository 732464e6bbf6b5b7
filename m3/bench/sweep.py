"""`m3 bench sweep`: a sweep of all scales against the largest scale alone, and against one
lmms-eval process per scale.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from m3.bench.timing import alternate
from m3.evaluation.results.run_folder import read_keys, result_path
from m3.evaluation.results.store import Store
from m3.evaluation.sweep import sweep

Answers = dict[tuple[str, int, int], str]
"""(task, scale, document) -> what was answered."""


def main(argv: list[str]) -> int:
    """Prints seconds and their ratios; every sweep starts from an empty store.

    1 when the two ways answer differently.
    """
    parser = argparse.ArgumentParser(prog="m3 bench sweep", description=__doc__)
    parser.add_argument("--model", default="playground/m3-tiny-base")
    parser.add_argument("--tasks", default="m3_tiny")
    parser.add_argument("--scales", default="1,4,9,36,144")
    parser.add_argument("--limit", type=int, default=50, help="documents of each task")
    parser.add_argument(
        "--include-path", type=Path, default=Path("lmms_eval_tasks"), help="folder with own tasks"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args(argv)
    scales = sorted(int(scale) for scale in arguments.scales.split(","))
    common = [
        arguments.model,
        "--tasks",
        arguments.tasks,
        "--limit",
        str(arguments.limit),
        "--no-latency",
    ]
    common += ["--include-path", str(arguments.include_path)]
    print(
        f"{len(scales)} scales {scales}, {arguments.limit} documents per task, "
        f"{arguments.repetitions} repetitions"
    )
    if arguments.repetitions:
        in_process(common, scales, arguments.repetitions)
    together, ours = swept(common, scales)
    apart, harness_answers = harness(
        arguments.model, arguments.tasks, scales, arguments.limit, arguments.include_path
    )
    equal = sum(ours[answer_key] == harness_answers[answer_key] for answer_key in harness_answers)
    print(
        f"as commands:     one sweep {together:.1f} s, {len(scales)} processes of lmms-eval "
        f"{apart:.1f} s"
    )
    print(
        f"the sweep takes {together / apart:.2f} of their time; {equal} of {len(harness_answers)} answers "
        "are equal"
    )
    return 0 if equal == len(harness_answers) == len(ours) else 1


def in_process(common: Sequence[str], scales: Sequence[int], repetitions: int) -> None:
    """All scales against the largest alone, without the time that starting takes."""

    def inside(chosen: Sequence[int]) -> None:
        with tempfile.TemporaryDirectory() as run_folder:
            code = sweep.main([*common, "--scales", joined(chosen), "--out", run_folder])
            if code:
                raise RuntimeError(f"the sweep failed with code {code}")

    every, largest_timing = alternate(
        [lambda: inside(scales), lambda: inside(scales[-1:])], repetitions
    )
    print(
        f"in one process:  all scales {every.median:.1f} s, {scales[-1]} alone "
        f"{largest_timing.median:.1f} s"
    )
    print(f"all scales cost {every.median / largest_timing.median:.2f}x the largest alone")


def swept(common: Sequence[str], scales: Sequence[int]) -> tuple[float, Answers]:
    """Seconds and answers of `m3 sweep`, as a command."""
    with tempfile.TemporaryDirectory() as run_name:
        run = Path(run_name)
        command = [
            sys.executable,
            "-m",
            "m3.cli",
            "sweep",
            *common,
            "--scales",
            joined(scales),
            "--out",
            run_name,
        ]
        seconds = timed(command)
        answers: Answers = {}
        store = Store(run / "store")
        for model in sorted(path.name for path in (run / "results").iterdir()):
            tasks = {path.stem.rpartition("@")[0] for path in (run / "results" / model).iterdir()}
            for task in sorted(tasks):
                for scale in scales:
                    assert result_path(run, model, task, scale).exists()
                    for doc_id, answer_key in read_keys(run, model, task, scale).items():
                        answers[task, scale, doc_id] = store.answer(answer_key).text
        return seconds, answers


def harness(
    model: str, tasks: str, scales: Sequence[int], limit: int, include: Path
) -> tuple[float, Answers]:
    """Seconds and answers of lmms-eval's own command, one process after the other."""
    seconds, answers = 0.0, {}
    for scale in scales:
        with tempfile.TemporaryDirectory() as output_name:
            command = [
                sys.executable,
                "-m",
                "lmms_eval",
                "--model",
                "m3",
                "--tasks",
                tasks,
                "--limit",
                str(limit),
            ]
            command += [
                "--model_args",
                f"pretrained={model},matryoshka_vis_token_scale={scale}",
                "--batch_size",
                "16",
            ]
            command += [
                "--include_path",
                str(include),
                "--log_samples",
                "--output_path",
                output_name,
            ]
            seconds += timed(command)
            for samples_path in Path(output_name).rglob("*_samples_*.jsonl"):
                task = samples_path.stem.split("_samples_")[1]
                for sample_line in samples_path.read_text(encoding="utf-8").splitlines():
                    sample = json.loads(sample_line)
                    # the harness writes a list of one answer as the answer
                    sample_answers = sample["filtered_resps"]
                    answers[task, scale, int(sample["doc_id"])] = (
                        sample_answers if isinstance(sample_answers, str) else sample_answers[0]
                    )
    return seconds, answers


def timed(command: Sequence[str]) -> float:
    """Seconds that a command takes; RuntimeError with its last words when it fails."""
    start_time = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start_time


def joined(scales: Sequence[int]) -> str:
    return ",".join(map(str, scales))
