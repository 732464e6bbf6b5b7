"""What a sweep evaluates, once the configurations of its models are known: tasks, names of rows,
budgets and choices within the reach of the models.

in:  what `SweepOptions` ask for, and configurations;
out: what is run, or a `ValueError` that says what cannot be.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from m3.evaluation.answering.settling import check_budget, check_setting, largest_resolution
from m3.evaluation.suites import get_suite, known_tasks, suites
from m3.evaluation.token_reduction.methods import OWN
from m3.model import M3Config
from m3.nesting import Budget, read_budget, read_ladder
from m3.processing.scale_policy import is_budget

logger = logging.getLogger(__name__)


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
