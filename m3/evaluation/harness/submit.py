"""`m3 submit RUN`: the files that benchmarks' servers take, one per model, method and scale, each
under a name of its own.

In: a run folder; the harness wrote each cell's file where scoring.py said. Out:
`RUN/submit/TASK__MODEL__SCALE_tokens.EXT`, and a list of them. Servers tell submissions apart by
their file name, so no two may share one.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3.command_line import CommandLine
from m3.evaluation.suites import known_tasks
from m3.text_table import align_columns


@dataclass(frozen=True)
class Submission:
    """One file for one server."""

    model: str
    task: str
    scale: int | str
    file: Path


def main(argv: list[str]) -> int:
    """Collects and lists the files. ValueError: the run has none."""
    parser = CommandLine(
        prog="m3 submit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder given to m3 sweep --out")
    parser.add_argument(
        "--all", action="store_true", help="also files of splits whose labels are public"
    )
    arguments = parser.parse_args(argv)
    submissions = collect(arguments.run, arguments.all)
    output_lines = align_columns(
        [(one.task, f"{one.model} at {one.scale} tokens: {one.file}") for one in submissions],
        left_columns=2,
    )
    print("\n".join(output_lines))  # noqa: T201 (the list is the output)
    return 0


def collect(run: Path, is_all: bool = False) -> list[Submission]:
    """Copies every cell's file to `run/submit`, in the place of what an earlier call left there.

    Raises:
        ValueError: no run folder, no file in it, or a cell with more than one file of a kind.
    """
    # its folder imports torch, for which no help text waits
    from m3.evaluation.results.run_folder import read_cell_name

    shutil.rmtree(run / "submit", ignore_errors=True)
    cells = sorted(run.glob("submissions/*/*@*"))
    servers = {task_name for task_name, task in known_tasks().items() if "server" in task.needs}
    submissions: list[Submission] = []
    for cell in cells:
        task, scale = read_cell_name(cell.name)
        if not is_all and task not in servers:
            continue
        cell_files = sorted(cell_file for cell_file in cell.rglob("*") if cell_file.is_file())
        submissions += [
            _copy(run, cell.parent.name, task, scale, cell_file, cell_files)
            for cell_file in cell_files
        ]
    if not submissions:
        other_tasks = sorted({read_cell_name(cell.name)[0] for cell in cells})
        hint = (
            f"--all takes those of {', '.join(other_tasks)}"
            if other_tasks
            else "no task in it writes one"
        )
        raise ValueError(f"{run} has no file for a server ({', '.join(sorted(servers))}); {hint}")
    file_names = [submission.file for submission in submissions]
    assert len(set(file_names)) == len(file_names), file_names
    return submissions


def _copy(
    run: Path, model: str, task: str, scale: int | str, path: Path, files: Sequence[Path]
) -> Submission:
    """The kind of a file is its ending; where a cell has two of a kind, the harness's own name
    is kept in it.
    """
    is_only = sum(other_file.suffix == path.suffix for other_file in files) == 1
    stem = f"{task}__{model}__{scale}_tokens" + ("" if is_only else f"__{path.stem}")
    target_file = run / "submit" / f"{stem}{path.suffix}"
    target_file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target_file)
    return Submission(model, task, scale, target_file)
