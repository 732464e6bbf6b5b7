"""The options of a sweep: the command line of `m3 sweep`, read once and checked before anything is
loaded.

In: arguments. Out: `SweepOptions`, which a sweep of a model in training (during_training.py) makes
itself.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3.evaluation.answering.settling import check_budget, check_setting, largest_resolution
from m3.evaluation.harness.lmms_model import FRAMES, sampling_of
from m3.evaluation.suites import get_suite, known_tasks, suites
from m3.evaluation.token_reduction.table import METHODS, OWN, get_method
from m3.inference.loading import DTYPES
from m3.model import M3Config
from m3.nesting import Budget, read_budget, read_ladder
from m3.processing.scale_policy import is_budget, read_setting

logger = logging.getLogger(__name__)


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
    _add_cells(parser)
    _add_folders_and_limits(parser)
    _add_machine_and_judge(parser)
    arguments = parser.parse_args(list(argv))
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
        "--dtype", default=SweepOptions.dtype, choices=("auto", *DTYPES), help="auto: as saved"
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


def task_names(
    suite_names: Sequence[str], named: Sequence[str], has_judge: bool
) -> tuple[list[str], list[str]]:
    """The tasks of `--suite` and `--tasks`, each once, and those left out because they need a
    judge.

    Raises:
        ValueError: neither is given; no such suite; a task named in `--tasks` that needs a judge.
    """
    of_suites = [
        suite_row for suite_name in suite_names for suite_row in get_suite(suite_name).tasks
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


def check_methods(
    methods: Sequence[str], scales: Sequence[int | str], choices: Sequence[int | str] = ()
) -> None:
    """A `ValueError` for a control at a budget with a resolution, or a choice without the model's
    own tokens.
    """
    if choices and OWN not in methods:
        raise ValueError(
            f"{', '.join(map(str, choices))} choose among the model's own tokens: add {OWN} to "
            "--methods, or leave the choices out of --scales"
        )
    controls = [method for method in methods if method != OWN]
    reduced = [scale for scale in scales if read_budget(scale).resolution is not None]
    if controls and reduced:
        plain = [str(scale) for scale in scales if scale not in reduced]
        raise ValueError(
            f"the controls {', '.join(controls)} choose among the tokens of the largest "
            f"resolution, so they have no {', '.join(map(str, reduced))}: sweep them with --scales "
            f"{','.join(plain) or '36'}, and the budgets with a resolution without --methods"
        )


def reachable_scales(
    asked_scales: Sequence[int | str] | None, configs: dict[str, M3Config]
) -> list[int | str]:
    """The budgets to sweep, ascending, each within the reach of every model; the first model's
    largest resolution goes without a name.

    `asked_scales`: by default the budgets that the first model was trained at, also where it names
    nothing but choices of budgets.

    Raises:
        ValueError: a resolution that a model cannot see, or tokens out of its reach; those that it
            can are listed.
    """
    first_config = next(iter(configs.values()))
    settings = [scale for scale in asked_scales or () if is_budget(scale)]
    settings = settings or first_config.nesting.trained_scales
    largest = largest_resolution(first_config)
    budgets = read_ladder(
        Budget(budget.tokens) if budget.resolution == largest else budget
        for budget in read_ladder(settings)
    )
    for model_name, config in configs.items():
        for budget in budgets:
            try:
                check_budget(config, budget)
            except ValueError as error:
                raise ValueError(f"model {model_name}: {error}") from error
    return [budget.setting for budget in budgets]


def asked_choices(
    asked_scales: Sequence[int | str] | None, configs: dict[str, M3Config]
) -> list[int | str]:
    """The choices of budgets to sweep (auto, auto:rule, 144+1), in the order of `--scales`.

    Raises:
        ValueError: the first model cannot follow one, as `auto` without a router.
    """
    choices = [scale for scale in asked_scales or () if not is_budget(scale)]
    first_name, first_config = next(iter(configs.items()))
    for choice in choices:
        try:
            check_setting(first_config, choice)
        except ValueError as error:
            raise ValueError(f"model {first_name}: {error}") from error
    return list(dict.fromkeys(choices))


def own_choices(choices: Sequence[int | str], model_name: str, config: M3Config) -> list[int | str]:
    """Those of the choices that a model can follow; what it cannot is logged, with the reason."""
    followed = []
    for choice in choices:
        try:
            check_setting(config, choice)
            followed.append(choice)
        except ValueError as error:
            logger.info("%s has no rows of %s: %s", model_name, choice, error)
    return followed
