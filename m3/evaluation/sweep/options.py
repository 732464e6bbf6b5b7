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
                *(
                    f"  {method_name:12}{method_row.about} ({method_row.source})"
                    for method_name, method_row in METHODS.items()
                ),
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
    named = [task_name.strip() for task_name in tasks.split(",") if task_name.strip()]
    of_suites = [
        suite_row
        for task_name in suite.split(",")
        if task_name.strip()
        for suite_row in get_suite(task_name.strip()).tasks
    ]
    if not named and not of_suites:
        raise ValueError(
            f"name what to evaluate: --tasks, or --suite with one of {', '.join(suites())}"
        )
    judged = [
        task_name
        for task_name in named
        if task_name in known_tasks() and "judge" in known_tasks()[task_name].needs
    ]
    if judged and not has_judge:
        raise ValueError(
            f"{', '.join(judged)} asks a language model to score the answers, which costs money: "
            "give it with --judge MODEL "
            "and, where it is not OpenAI's, --judge-url"
        )
    left_out = [
        suite_row.task for suite_row in of_suites if "judge" in suite_row.needs and not has_judge
    ]
    wanted_tasks = [
        *named,
        *(suite_row.task for suite_row in of_suites if suite_row.task not in left_out),
    ]
    return list(dict.fromkeys(wanted_tasks)), list(dict.fromkeys(left_out))


def chosen_methods(text: str) -> list[str]:
    """The rows of the table that `--methods` names, each once, in its order."""
    method_names = list(
        dict.fromkeys(method_name.strip() for method_name in text.split(",") if method_name.strip())
    )
    for method_name in method_names:
        get_method(method_name)
    if not method_names:
        raise ValueError(f"--methods is empty; it takes one or more of {', '.join(METHODS)}")
    return method_names


def check_positive(**numbers: int | None) -> None:
    for option_name, option_number in numbers.items():
        if option_number is not None and option_number < 1:
            raise ValueError(
                f"--{option_name.replace('_', '-')} must be at least 1, got {option_number}"
            )


def labels(paths: Sequence[str]) -> dict[str, str]:
    """A short distinct name for each model: the end of its path, as long as it takes to tell them
    apart.

    `runs/mine/checkpoints/final`, as training leaves it, is `mine`.
    """
    whole_paths = {
        model_path: Path(model_path).resolve() if Path(model_path).is_dir() else Path(model_path)
        for model_path in paths
    }
    if len(set(whole_paths.values())) < len(paths):
        raise ValueError(f"a model is given twice: {', '.join(paths)}")
    telling_parts = {
        model_path: [
            path_part
            for path_part in whole_paths[model_path].parts
            if path_part not in ("checkpoints", "final", "/")
        ]
        for model_path in paths
    }
    for part_count in range(1, 1 + max(map(len, telling_parts.values()))):
        label_names = [
            "_".join(telling_parts[model_path][-part_count:]) or model_path for model_path in paths
        ]
        if len(set(label_names)) == len(paths):
            return dict(zip(label_names, paths, strict=True))
    raise ValueError(f"no part of their paths tells these models apart: {', '.join(paths)}")


def label_of(name: str, method: str) -> str:
    """The name of a model's rows, or of a control's."""
    return name if method == OWN else f"{name}+{method}"


def check_distinct(names: Sequence[str], methods: Sequence[str]) -> None:
    """A model's folder may be called as a control of another one is.

    Raises:
        ValueError: it is, and the rows of both would be mixed.
    """
    row_labels = [label_of(model_name, method) for model_name in names for method in methods]
    twice = sorted({row_label for row_label in row_labels if row_labels.count(row_label) > 1})
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
    elif all(scale_text.strip().isdigit() for scale_text in text.split(",")):
        scales = {int(scale_text) for scale_text in text.split(",")}
    else:
        raise ValueError(
            f"--scales takes numbers of visual tokens with commas, such as 1,9,36; got {text!r}"
        )
    for model_name, config in configs.items():
        nesting = get_nesting(config.nesting.kind)
        for scale in scales:
            try:
                nesting.count(config.grid, scale)
            except ValueError as error:
                raise ValueError(f"model {model_name}: {error}") from error
    return sorted(scales)
