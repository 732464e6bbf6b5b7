"""The options of a sweep: the command line of `m3 sweep`, read once and checked before anything is
loaded, torch included.

In: arguments. Out: `SweepOptions`, which a sweep of a model in training (during_training.py) makes
itself.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3.command_line import CommandLine
from m3.evaluation.harness.frames import FRAMES, sampling_of
from m3.evaluation.suites import get_suite, suites
from m3.evaluation.token_reduction.methods import METHODS, OWN, get_method
from m3.inference.command import NUMBER_FORMATS
from m3.processing.scale_policy import read_setting


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Models, tasks, budgets and methods of a sweep, and how it runs.

    `models`: the first is the one compared. `scales`: 36, "36@48" or a choice such as "auto"; None for
    those that the first model was trained at. `data_root`: a folder with local copies of data sets. `limit`: documents of each
    task, None for all. `batch_size`: rows at the largest trained scale. `frames`: a number, or
    `collage`. `command`: what the run folder tells of how it was made.
    """

    models: tuple[str, ...]
    suites: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    scales: tuple[int | str, ...] | None = None
    methods: tuple[str, ...] = (OWN,)
    out: Path = Path("runs/sweep")
    include_path: Path = Path("lmms_eval_tasks")
    data_root: Path | None = None
    limit: int | None = None
    batch_size: int = 16
    frames: str = FRAMES
    device: str | None = None
    dtype: str = "auto"
    measures_latency: bool = True
    judge: str | None = None
    judge_url: str | None = None
    baseline: Path | None = None
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option_name, number in (("--limit", self.limit), ("--batch-size", self.batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"{option_name} must be at least 1, got {number}")
        sampling_of(self.frames)


def parse_options(argv: Sequence[str]) -> SweepOptions:
    """Reads the command line.

    Raises:
        ValueError: an option that makes no sense, whatever the models are.
    """
    parser = CommandLine(
        prog="m3 sweep",
        description="Every model at every scale, by every method, on every task; each image is "
        "encoded once.",
        epilog="\n".join(
            [
                "methods:",
                *(
                    f"  {method_name:12}{method_row.about} ({method_row.source})"
                    for method_name, method_row in METHODS.items()
                ),
            ]
        ),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    _add_cells(parser)
    _add_folders_and_limits(parser)
    _add_machine_and_judge(parser)
    arguments = parser.parse_args(list(argv))
    for suite_name in names_in(arguments.suite):
        get_suite(suite_name)
    return SweepOptions(
        models=tuple(arguments.models),
        suites=names_in(arguments.suite),
        tasks=names_in(arguments.tasks),
        scales=None if arguments.scales is None else scales_in(arguments.scales),
        methods=methods_in(arguments.methods),
        out=arguments.out,
        include_path=arguments.include_path,
        data_root=arguments.data_root,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        frames=arguments.frames,
        device=arguments.device,
        dtype=arguments.dtype,
        measures_latency=not arguments.no_latency,
        judge=arguments.judge,
        judge_url=arguments.judge_url,
        baseline=arguments.baseline,
        command=("m3", "sweep", *argv),
    )


def _add_cells(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is evaluated."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folder or hub id; the first is the one compared"
    )
    parser.add_argument(
        "--suite", default="", help=f"named suites, with commas: {', '.join(suites())}"
    )
    parser.add_argument(
        "--tasks", default="", help="names of lmms-eval tasks, groups or tags, with commas"
    )
    parser.add_argument(
        "--scales",
        help="visual tokens per image, with commas, or tokens at a resolution in pixels, such as\n"
        "1,36,36@48; choices among them: auto, auto:0.95, auto:rule, 144+1; default: the first\n"
        "model's trained scales",
    )
    parser.add_argument(
        "--methods", default=OWN, help="how visual tokens are chosen, with commas; see below"
    )


def _add_folders_and_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options of folders, and of how much is evaluated at a time."""
    parser.add_argument(
        "--out",
        type=Path,
        default=SweepOptions.out,
        help="run folder; an earlier sweep in it is resumed",
    )
    parser.add_argument(
        "--include-path", type=Path, default=SweepOptions.include_path, help="folder with own tasks"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        help="folder with local copies of the data sets (m3 data fetch-eval)",
    )
    parser.add_argument("--limit", type=int, help="only the first so many documents of each task")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=SweepOptions.batch_size,
        help="rows at the largest trained scale; more at smaller ones",
    )
    parser.add_argument(
        "--frames",
        default=SweepOptions.frames,
        help="frames of a video, each an image; or collage: six as one image, as M3 does",
    )


def _add_machine_and_judge(parser: argparse.ArgumentParser) -> None:
    """Add the options of the device, of measuring, and of judging the answers."""
    parser.add_argument("--device", help="default: the accelerator that torch sees, else cpu")
    parser.add_argument(
        "--dtype",
        default=SweepOptions.dtype,
        choices=("auto", *NUMBER_FORMATS),
        help="auto: as saved",
    )
    parser.add_argument(
        "--no-latency",
        action="store_true",
        help="do not measure times and memory, compute cost alone",
    )
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="language model that scores open answers; see docs/evaluation.md",
    )
    parser.add_argument(
        "--judge-url", help="its OpenAI-compatible address; default: that of OpenAI"
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="an earlier run; exit code 1 where accuracy fell beyond the noise",
    )


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def scales_in(text: str) -> tuple[int | str, ...]:
    """The budgets of `--scales`."""
    try:
        return tuple(read_setting(scale_text.strip()) for scale_text in text.split(","))
    except ValueError as error:
        raise ValueError(
            "--scales takes numbers of visual tokens with commas, such as 1,9,36, tokens at a "
            "resolution in pixels, such as 36@48, or choices of them: auto, auto:0.95, auto:rule, "
            f"144+1; got {text!r}"
        ) from error


def methods_in(text: str) -> tuple[str, ...]:
    """The rows of the table that `--methods` names, each once, in its order."""
    method_names = tuple(dict.fromkeys(names_in(text)))
    for method_name in method_names:
        get_method(method_name)
    if not method_names:
        raise ValueError(f"--methods is empty; it takes one or more of {', '.join(METHODS)}")
    return method_names
