"""`m3 bench sweep`: all scales against the largest alone, and against lmms-eval per scale."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from m3.bench.cost import parse_budgets
from m3.bench.options import sweep_options
from m3.bench.timing import alternate
from m3.evaluation.results.run_folder import read_cell_name, read_keys, result_path
from m3.evaluation.results.store import Store
from m3.evaluation.sweep.command import main as sweep

Answers = dict[tuple[str, int | str, int], str]
"""Answer text per (task, budget, document)."""


def main(argv: list[str]) -> int:
    """Print seconds and their ratios; 1 when sweep and lmms-eval answer differently.

    Every sweep starts from an empty store.
    """
    arguments = sweep_options().parse_args(argv)
    scales = parse_budgets(arguments.scales)
    common = [arguments.model, "--tasks", arguments.tasks, "--limit", str(arguments.limit)]
    common += ["--no-latency", "--include-path", str(arguments.include_path)]
    print(
        f"{len(scales)} scales {scales}, {arguments.limit} documents per task, "
        f"{arguments.repetitions} repetitions"
    )
    if arguments.repetitions:
        compare_in_process(common, scales, arguments.repetitions)
    sweep_seconds, sweep_answers = run_sweep(common, scales)
    harness_seconds, harness_answers = run_harness(
        arguments.model, arguments.tasks, scales, arguments.limit, arguments.include_path
    )
    equal_count = sum(sweep_answers[key] == answer for key, answer in harness_answers.items())
    print(
        f"as commands:     one sweep {sweep_seconds:.1f} s, {len(scales)} processes of lmms-eval "
        f"{harness_seconds:.1f} s"
    )
    print(
        f"the sweep takes {sweep_seconds / harness_seconds:.2f} of their time; {equal_count} of "
        f"{len(harness_answers)} answers are equal"
    )
    return 0 if equal_count == len(harness_answers) == len(sweep_answers) else 1


def compare_in_process(
    common: Sequence[str], scales: Sequence[int | str], repetitions: int
) -> None:
    """Time all scales against the largest alone, without the time to start a process."""

    def sweep_scales(chosen_scales: Sequence[int | str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = sweep([*common, "--scales", scale_list(chosen_scales), "--out", folder])
            if code:
                raise RuntimeError(f"the sweep failed with code {code}")

    all_timing, largest_timing = alternate(
        [lambda: sweep_scales(scales), lambda: sweep_scales(scales[-1:])], repetitions
    )
    print(
        f"in one process:  all scales {all_timing.median:.1f} s, {scales[-1]} alone "
        f"{largest_timing.median:.1f} s"
    )
    print(f"all scales cost {all_timing.median / largest_timing.median:.2f}x the largest alone")


def run_sweep(common: Sequence[str], scales: Sequence[int | str]) -> tuple[float, Answers]:
    """Seconds and answers of the command `m3 sweep`."""
    with tempfile.TemporaryDirectory() as folder_name:
        run_folder = Path(folder_name)
        command = [sys.executable, "-m", "m3.cli", "sweep", *common]
        command += ["--scales", scale_list(scales), "--out", folder_name]
        seconds = command_seconds(command)
        answers: Answers = {}
        store = Store(run_folder / "store")
        for model_folder in sorted((run_folder / "results").iterdir()):
            model_name = model_folder.name
            for task_name in sorted({read_cell_name(p.stem)[0] for p in model_folder.iterdir()}):
                for scale in scales:
                    assert result_path(run_folder, model_name, task_name, scale).exists()
                    for doc_id, key in read_keys(run_folder, model_name, task_name, scale).items():
                        answers[task_name, scale, doc_id] = store.answer(key).text
        return seconds, answers


def run_harness(
    model_path: str, task_list: str, scales: Sequence[int | str], limit: int, include_path: Path
) -> tuple[float, Answers]:
    """Seconds and answers of lmms-eval's own command, one process per scale."""
    seconds, answers = 0.0, {}
    for scale in scales:
        with tempfile.TemporaryDirectory() as folder_name:
            model_args = f"pretrained={model_path},matryoshka_vis_token_scale={scale}"
            command = [sys.executable, "-m", "lmms_eval", "--model", "m3", "--tasks", task_list]
            command += ["--limit", str(limit), "--model_args", model_args, "--batch_size", "16"]
            command += ["--include_path", str(include_path), "--log_samples"]
            command += ["--output_path", folder_name]
            seconds += command_seconds(command)
            for path in Path(folder_name).rglob("*_samples_*.jsonl"):
                task_name = path.stem.split("_samples_")[1]
                for line in path.read_text(encoding="utf-8").splitlines():
                    sample = json.loads(line)
                    # the harness unpacks a list of one answer
                    filtered_answer = sample["filtered_resps"]
                    answers[task_name, scale, int(sample["doc_id"])] = (
                        filtered_answer if isinstance(filtered_answer, str) else filtered_answer[0]
                    )
    return seconds, answers


def command_seconds(command: Sequence[str]) -> float:
    """Run a command and return its seconds; a RuntimeError with its last output if it fails."""
    start = time.perf_counter()
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{completed.stderr[-2000:]}")
    return time.perf_counter() - start


def scale_list(scales: Sequence[int | str]) -> str:
    return ",".join(map(str, scales))
