"""`m3 sweep MODEL ... --suite S --scales ... --methods ...`: models x methods x scales x tasks,
each image encoded once.

In: model folders or hub ids. Out: a run folder (run_folder.py) that `m3 report` reads. The harness
runs in this process with the model loaded once; killed and started again, only answers that the
store lacks are computed. Started by torchrun, each process answers its share of the documents, and
the first one scores all of them.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import Accelerator, InitProcessGroupKwargs
from datasets import disable_progress_bars
from lmms_eval.tasks import TaskManager
from loguru import logger as harness_logger
from transformers.utils import logging as transformers_logging

from m3.evaluation.answering.engine import Engine
from m3.evaluation.cost.choice_latency import choice_latency, time_choosing
from m3.evaluation.cost.latency import measure
from m3.evaluation.harness.frames import sampling_of
from m3.evaluation.harness.judge import check_judge, price, set_judge
from m3.evaluation.harness.lmms_model import default_device, local_device
from m3.evaluation.harness.scoring import failed_row, run_cell
from m3.evaluation.harness.stored_model import MethodBudget, StoredModel
from m3.evaluation.harness.tasks import BrokenTask, LoadedTask, load_tasks, tasks_folder
from m3.evaluation.results.run_folder import (
    CellRow,
    CostRow,
    LatencyRow,
    ModelRow,
    alone_in,
    read_keys,
    write_json,
    write_rows,
)
from m3.evaluation.results.store import Answer, Store
from m3.evaluation.suites import known_tasks
from m3.evaluation.sweep.baseline import check_baseline, fallen
from m3.evaluation.sweep.examples import write_examples
from m3.evaluation.sweep.options import SweepOptions
from m3.evaluation.sweep.progress import Progress, check_disk
from m3.evaluation.sweep.prompt_cost import NO_ANSWER_TEXT, costs_of, prompts_of
from m3.evaluation.sweep.selection import (
    asked_choices,
    check_distinct,
    check_methods,
    label_of,
    labels,
    own_choices,
    reachable_scales,
    task_names,
)
from m3.evaluation.token_reduction.methods import OWN, is_own
from m3.hardware import environment
from m3.inference.loading import read_config
from m3.nesting import read_budget
from m3.processing.scale_policy import Auto, read_policy

logger = logging.getLogger(__name__)

LATENCY_BATCHES = (1, 16)
FoundTasks = tuple[TaskManager, list[LoadedTask], list[BrokenTask]]
"""What `load_tasks` gives."""
PATIENCE = timedelta(days=30)
"""How long processes wait for each other: one may have far longer answers than the others, or a
judge to ask.
"""


@dataclass
class Sweep:
    """Inputs of a sweep, and the rows it has so far.

    `is_writer`: the first process, which scores and writes.

    `in_step`: every process answers all documents, since none can run the model without the others
        (ZeRO-3).
    """

    options: SweepOptions
    scales: list[int | str]  # the budgets, ascending
    choices: list[int | str]  # choices among budgets, of the models' own tokens
    manager: TaskManager
    tasks: list[LoadedTask]
    broken: list[BrokenTask]
    accelerator: Accelerator
    progress: Progress
    in_step: bool = False
    models: list[ModelRow] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)
    costs: list[CostRow] = field(default_factory=list)
    times: list[LatencyRow] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.options.out

    @property
    def is_writer(self) -> bool:
        return self.accelerator.is_main_process


def run_sweep(options: SweepOptions) -> int:
    """Runs the sweep.

    0: every cell was scored; 1: some failed, or accuracy fell against the baseline, and which is
    printed.

    Raises:
        ValueError: a user's mistake.
    """
    if options.baseline is not None:
        check_baseline(options.out, options.baseline)
    model_paths = labels(options.models)
    configs = {
        model_name: read_config(model_path) for model_name, model_path in model_paths.items()
    }
    wanted_tasks, left_out = task_names(options.suites, options.tasks, options.judge is not None)
    if left_out:
        logger.info("left out, since they need a judge (--judge): %s", ", ".join(left_out))
    if options.judge is not None:
        set_judge(options.judge, options.judge_url)
        check_judge()
    scales = reachable_scales(options.scales, configs)
    choices = asked_choices(options.scales, configs)
    check_methods(options.methods, scales, choices)
    check_distinct(list(model_paths), options.methods)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    found_tasks = find(options, wanted_tasks)
    # of the processes that torchrun starts, the first writes
    with alone_in(options.out) if os.environ.get("RANK", "0") == "0" else nullcontext():
        sweep = prepare(options, found_tasks, scales, choices)
        for model_name, model_path in model_paths.items():
            sweep_model(sweep, model_name, model_path)
    if not sweep.is_writer:
        return 0
    fell = fallen(sweep.run, options.baseline) if options.baseline is not None else []
    failed = [cell for cell in sweep.cells if cell.status == "failed"]
    for cell in failed:
        logger.error(
            "FAILED %s, %s at %s tokens: %s", cell.model, cell.task, cell.scale, cell.error
        )
    next_step = "" if len(failed) == len(sweep.cells) else f" Next: m3 report {sweep.run}"
    logger.info("%s: %d rows, %d failed.%s", sweep.run, len(sweep.cells), len(failed), next_step)
    return 1 if failed or fell else 0


def find(options: SweepOptions, wanted_names: Sequence[str]) -> FoundTasks:
    """Loads the tasks. What the harness says of them goes to the log of the run folder."""
    run = options.out
    run.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    harness_logger.remove()
    harness_logger.add(run / "lmms_eval.log")
    include = tasks_folder(options.include_path)
    with quiet(run):
        return load_tasks(wanted_names, include, run / "tasks", options.data_root)


def prepare(
    options: SweepOptions,
    found_tasks: FoundTasks,
    scales: list[int | str],
    choices: Sequence[int | str] = (),
) -> Sweep:
    """Sets the run folder up, `options.out`."""
    run = options.out
    run.mkdir(parents=True, exist_ok=True)
    manager, tasks, broken = found_tasks
    is_cpu = default_device(options.device) == "cpu"  # joins what torchrun launched
    accelerator = Accelerator(
        cpu=is_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
    )
    documents = sum(min(len(loaded.task.eval_docs), options.limit or 10**12) for loaded in tasks)
    budgets = len(options.models) * (len(scales) * len(options.methods) + len(choices))
    for loaded in tasks:
        if loaded.name in known_tasks() and "judge" in known_tasks()[loaded.name].needs:
            document_count = min(len(loaded.task.eval_docs), options.limit or 10**12)
            logger.info("judge %s, %s", options.judge, price(loaded.name, document_count, budgets))
    check_disk(run, documents * budgets)
    if accelerator.is_main_process:
        shutil.rmtree(
            run / "submissions", ignore_errors=True
        )  # of other models or scales, or of older weights of these
        clear(run)
        write_json(run / "environment.json", environment(options.command))
        write_json(
            run / "baselines.json",
            {loaded.name: loaded.baselines for loaded in tasks if loaded.baselines},
        )
    progress = Progress(budgets * (len(tasks) + len(broken)), run)
    return Sweep(options, scales, list(choices), manager, tasks, broken, accelerator, progress)


def clear(run: Path) -> None:
    """Tables of an earlier sweep in the folder, perhaps of other models or documents; its
    answers stay in the store.
    """
    write_rows(run / "cells.csv", CellRow, [])
    write_rows(run / "cost.csv", CostRow, [])
    write_rows(run / "latency.csv", LatencyRow, [])
    write_json(run / "models.json", [])
    shutil.rmtree(run / "examples", ignore_errors=True)


def sweep_model(sweep: Sweep, name: str, path: str) -> None:
    """One model, loaded for it, on every task, by every method and at every scale."""
    sweep_engine(
        sweep,
        name,
        path,
        Engine.load(path, local_device(sweep.options.device), sweep.options.dtype),
    )


def sweep_engine(sweep: Sweep, name: str, path: str, engine: Engine) -> None:
    """As `sweep_model`, with the model at hand."""
    options = sweep.options
    nesting_kind = engine.model.config.nesting.kind
    methods = [
        method for method in options.methods if method == OWN or not is_own(method, nesting_kind)
    ]
    for method in sorted(set(options.methods) - set(methods)):
        logger.info(
            "%s nests by pooling, so the method %s is its own nesting; it has no rows apart",
            name,
            method,
        )
    for method in methods or [OWN]:
        sweep.models.append(describe(name, path, engine, method))
    if sweep.is_writer:
        write_json(sweep.run / "models.json", [vars(model) for model in sweep.models])
    budgets = [MethodBudget(scale, method) for method in methods or [OWN] for scale in sweep.scales]
    choices = own_choices(sweep.choices, name, engine.model.config) if OWN in methods else []
    budgets += [MethodBudget(choice) for choice in choices]
    for broken in sweep.broken:
        for budget in budgets:
            row_label = label_of(name, budget.method)
            broken_row = failed_row(
                row_label, broken.name, budget.scale, broken.metric, broken.error
            )
            add_cell(sweep, [broken_row], row_label, broken.name, budget.scale)
    with own_store(sweep) as store_folder, Store(store_folder) as store:
        for loaded in sweep.tasks:
            run_task(sweep, name, loaded, engine, store, budgets)
        if sweep.is_writer:
            add_costs(sweep, name, engine, store, methods or [OWN], choices)
    if sweep.is_writer and path == options.models[0]:
        first_model = sweep.models[0].name
        write_examples(
            sweep.run,
            first_model,
            sweep.tasks,
            sweep.scales,
            sweep.cells,
            sampling_of(options.frames),
        )


@contextmanager
def own_store(sweep: Sweep) -> Iterator[Path]:
    """The folder of the run's store; in step, all processes have the same answers, and what the
    others hold goes.
    """
    if sweep.is_writer or not sweep.in_step:
        yield sweep.run / "store"
        return
    with TemporaryDirectory() as temporary_folder:
        yield Path(temporary_folder)


def run_task(
    sweep: Sweep,
    name: str,
    loaded: LoadedTask,
    engine: Engine,
    store: Store,
    budgets: Sequence[MethodBudget],
) -> None:
    """One model on one task.

    Several processes answer first, each its share (in step: all); then the first one scores.
    """
    options = sweep.options
    cell_label = f"{name}, {loaded.name}"
    model = StoredModel(
        engine,
        budgets,
        options.batch_size,
        loaded,
        store,
        cell_label,
        options.frames,
        options.limit,
    )
    if sweep.accelerator.num_processes > 1:
        with quiet(sweep.run):
            model.answer_share(everything=sweep.in_step)
        sweep.accelerator.wait_for_everyone()
        store.refresh()
    if not sweep.is_writer:
        for _ in budgets:  # the harness waits for all processes once, when it starts on a cell
            sweep.accelerator.wait_for_everyone()
        return
    for budget in budgets:
        model.serve(budget)
        row_name = label_of(name, budget.method)
        with quiet(sweep.run):
            cell_rows = run_cell(model, row_name, loaded, sweep.manager, options.limit, sweep.run)
        add_cell(sweep, cell_rows, row_name, loaded.name, budget.scale)


def add_cell(sweep: Sweep, rows: Sequence[CellRow], name: str, task: str, scale: int | str) -> None:
    if sweep.is_writer:
        sweep.cells += rows
        write_rows(sweep.run / "cells.csv", CellRow, sweep.cells)
        sweep.progress.report(rows, name, task, scale)


@contextmanager
def quiet(run: Path) -> Iterator[None]:
    """Send the harness's prints to the log."""
    with (run / "lmms_eval.log").open("a") as log, redirect_stderr(log), redirect_stdout(log):
        yield


def describe(name: str, path: str, engine: Engine, method: str) -> ModelRow:
    config = engine.model.config
    grid = [config.grid] if isinstance(config.grid, int) else list(config.grid)
    scales, nesting_kind = list(config.nesting.trained_scales), config.nesting.kind
    parameters = sum(parameter.numel() for parameter in engine.outline.parameters())
    base = "" if method == OWN else name
    routers = len(engine.model.model.routers)
    model_label, tiling = label_of(name, method), config.tiling.to_dict()
    return ModelRow(
        model_label,
        path,
        engine.weights,
        scales,
        grid,
        nesting_kind,
        parameters,
        method,
        base,
        routers,
        tiling,
        config.tile_side(None),
    )


def add_costs(
    sweep: Sweep,
    name: str,
    engine: Engine,
    store: Store,
    methods: Sequence[str],
    choices: Sequence[int | str],
) -> None:
    """Cost of the prompts that were asked; times of one image of most tiles and a mean text, by
    the model's own nesting.
    """
    for method in methods:
        for scale in [*sweep.scales, *(choices if method == OWN else ())]:
            model_label = label_of(name, method)
            asked_prompts = {
                task: prompts_of(task_answers)
                for task, task_answers in answers_of(sweep, model_label, scale, store).items()
            }
            sweep.costs += costs_of(engine, model_label, method, scale, asked_prompts)
    if sweep.options.measures_latency:
        mean_text_tokens = text_tokens(name, sweep.cells)
        measured = measure(engine.model, sweep.scales, mean_text_tokens, LATENCY_BATCHES)
        for choice in choices:
            shares = chosen_shares(answers_of(sweep, name, choice, store))
            choosing = {}
            if isinstance(read_policy(choice), Auto) and shares:
                choosing = time_choosing(engine.model, shares, mean_text_tokens, LATENCY_BATCHES)
            measured += choice_latency(choice, shares, measured, choosing) if shares else []
        sweep.times += [LatencyRow.of(name, latency_row) for latency_row in measured]
    write_rows(sweep.run / "cost.csv", CostRow, sweep.costs)
    write_rows(sweep.run / "latency.csv", LatencyRow, sweep.times)


def answers_of(sweep: Sweep, label: str, scale: int | str, store: Store) -> dict[str, list[Answer]]:
    """Answers of every task that did not fail, a server's included."""
    failed = {
        cell.task
        for cell in sweep.cells
        if (cell.model, cell.scale, cell.status) == (label, scale, "failed")
    }
    tasks = [loaded.name for loaded in sweep.tasks if loaded.name not in failed]
    return {
        task: [
            store.answer(answer_key)
            for answer_key in read_keys(sweep.run, label, task, scale).values()
        ]
        for task in tasks
    }


def chosen_shares(answers: Mapping[str, Sequence[Answer]]) -> dict[int | str, float]:
    """Share of each budget among the pictures of all answers."""
    counts: Counter[int | str] = Counter()
    for answer in (answer for task_answers in answers.values() for answer in task_answers):
        settings = [read_budget(word).setting for word in str(answer.cell.scale).split(",")]
        counts.update(settings * len(answer.images) if len(settings) == 1 else settings)
    return {setting: count / counts.total() for setting, count in counts.items()}


def text_tokens(name: str, cells: Sequence[CellRow]) -> int:
    """Mean number of text tokens of the tasks' prompts: latency is that of such a prompt."""
    prompt_lengths = [
        cell.text_tokens for cell in cells if cell.model == name and cell.text_tokens is not None
    ]
    return round(sum(prompt_lengths) / len(prompt_lengths)) if prompt_lengths else NO_ANSWER_TEXT
