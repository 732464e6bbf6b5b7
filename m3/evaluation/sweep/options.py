"""The command line of `m3 sweep`, checked before anything is loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.harness.lmms_model import FRAMES, sampling_of
from m3.evaluation.suites import get_suite, known_tasks, suites
from m3.evaluation.token_reduction.table import METHODS, OWN, get_method
from m3.inference.loading import DTYPES
from m3.model import M3Config
from m3.nesting import get_nesting


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 sweep",
        description="Every model at every scale, by every method, on every task; each image is "
        "encoded once.",
        epilog="\n".join(
            [
                "methods:",
                *(f"  {name:12}{row.about} ({row.source})" for name, row in METHODS.items()),
            ]
        ),
        formatter_class=argparse.RawTextHelpFormatter,
    )
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
        help="visual tokens per image, with commas; default: the first model's trained scales",
    )
    parser.add_argument(
        "--methods", default=OWN, help="how visual tokens are chosen, with commas; see below"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/sweep"),
        help="run folder; an earlier sweep in it is resumed",
    )
    parser.add_argument(
        "--include-path", type=Path, default=Path("lmms_eval_tasks"), help="folder with own tasks"
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
        default=16,
        help="rows at the largest trained scale; more at smaller ones",
    )
    parser.add_argument(
        "--frames",
        default=FRAMES,
        help="frames of a video, each an image; or collage: six as one image, as M3 does",
    )
    parser.add_argument("--device", help="default: the accelerator that torch sees, else cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: as saved")
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
    arguments = parser.parse_args(list(argv))
    check_positive(limit=arguments.limit, batch_size=arguments.batch_size)
    sampling_of(arguments.frames)
    return arguments


def task_names(suite: str, tasks: str, has_judge: bool) -> tuple[list[str], list[str]]:
    """The tasks of `--suite` and `--tasks`, each once, and those left out because they need a
    judge.

    Raises:
        ValueError: neither is given; no such suite; a task named in `--tasks` that needs a judge.
    """
    named = [name.strip() for name in tasks.split(",") if name.strip()]
    of_suites = [
        row for name in suite.split(",") if name.strip() for row in get_suite(name.strip()).tasks
    ]
    if not named and not of_suites:
        raise ValueError(
            f"name what to evaluate: --tasks, or --suite with one of {', '.join(suites())}"
        )
    judged = [
        name for name in named if name in known_tasks() and "judge" in known_tasks()[name].needs
    ]
    if judged and not has_judge:
        raise ValueError(
            f"{', '.join(judged)} asks a language model to score the answers, which costs money: "
            "give it with --judge MODEL "
            "and, where it is not OpenAI's, --judge-url"
        )
    left_out = [row.task for row in of_suites if "judge" in row.needs and not has_judge]
    wanted = [*named, *(row.task for row in of_suites if row.task not in left_out)]
    return list(dict.fromkeys(wanted)), list(dict.fromkeys(left_out))


def chosen_methods(text: str) -> list[str]:
    """The rows of the table that `--methods` names, each once, in its order."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        get_method(name)
    if not names:
        raise ValueError(f"--methods is empty; it takes one or more of {', '.join(METHODS)}")
    return names


def check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")


def labels(paths: Sequence[str]) -> dict[str, str]:
    """A short distinct name for each model: the end of its path, as long as it takes to tell them
    apart.

    `runs/mine/checkpoints/final`, as training leaves it, is `mine`.
    """
    whole = {path: Path(path).resolve() if Path(path).is_dir() else Path(path) for path in paths}
    if len(set(whole.values())) < len(paths):
        raise ValueError(f"a model is given twice: {', '.join(paths)}")
    told = {
        path: [part for part in whole[path].parts if part not in ("checkpoints", "final", "/")]
        for path in paths
    }
    for parts in range(1, 1 + max(map(len, told.values()))):
        names = ["_".join(told[path][-parts:]) or path for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"no part of their paths tells these models apart: {', '.join(paths)}")


def label_of(name: str, method: str) -> str:
    """The name of a model's rows, or of a control's."""
    return name if method == OWN else f"{name}+{method}"


def check_distinct(names: Sequence[str], methods: Sequence[str]) -> None:
    """A model's folder may be called as a control of another one is.

    Raises:
        ValueError: it is, and the rows of both would be mixed.
    """
    rows = [label_of(name, method) for name in names for method in methods]
    twice = sorted({row for row in rows if rows.count(row) > 1})
    if twice:
        raise ValueError(
            f"{', '.join(twice)} would name the rows of a model and of a control; rename the "
            "model's folder"
        )


def reachable_scales(text: str | None, configs: dict[str, M3Config]) -> list[int]:
    """The scales to sweep, ascending, each reachable by every model.

    Raises:
        ValueError: a scale that is no number, or out of reach of a model; its reachable scales are
            listed.
    """
    if text is None:
        scales = next(iter(configs.values())).nesting.trained_scales
    elif all(part.strip().isdigit() for part in text.split(",")):
        scales = {int(part) for part in text.split(",")}
    else:
        raise ValueError(
            f"--scales takes numbers of visual tokens with commas, such as 1,9,36; got {text!r}"
        )
    for name, config in configs.items():
        nesting = get_nesting(config.nesting.kind)
        for scale in scales:
            try:
                nesting.count(config.grid, scale)
            except ValueError as error:
                raise ValueError(f"model {name}: {error}") from error
    return sorted(scales)
