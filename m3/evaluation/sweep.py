"""`m3 sweep MODEL ... --tasks T --scales S`: every model at every scale on every task, each image encoded once.

In: model folders or hub ids. Out: a run folder (run_folder.py) that `m3 report` reads. The harness runs in this
process with the model loaded once; killed and started again, only answers that the store lacks are computed.
"""

import argparse
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from accelerate import Accelerator
from datasets import disable_progress_bars
from loguru import logger as harness_logger
from transformers.utils import logging as transformers_logging

from m3.evaluation.engine import Engine, Picture
from m3.evaluation.latency import measure
from m3.evaluation.lmms import default_device, local_device
from m3.evaluation.run_folder import (
    CellRow,
    CostRow,
    Example,
    LatencyRow,
    ModelRow,
    environment,
    read_keys,
    write_json,
    write_rows,
)
from m3.evaluation.scoring import run_cell
from m3.evaluation.store import Store
from m3.evaluation.stored import StoredModel
from m3.evaluation.tasks import LoadedTask, load_tasks
from m3.model import M3Config
from m3.model.cost import CostModel
from m3.nesting import get_nesting

logger = logging.getLogger(__name__)

EXAMPLE_PIXELS = 448
EXAMPLES_PER_TASK = 2
LATENCY_BATCHES = (1, 8)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="m3 sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder or hub id; the first is the one compared")
    parser.add_argument("--tasks", required=True, help="names of lmms-eval tasks, groups or tags, with commas")
    parser.add_argument(
        "--scales", help="visual tokens per image, with commas; default: the first model's trained scales"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweep"), help="run folder; an earlier sweep in it is resumed"
    )
    parser.add_argument("--include-path", type=Path, default=Path("lmms_eval_tasks"), help="folder with own tasks")
    parser.add_argument("--limit", type=int, help="only the first so many documents of each task")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="rows at the largest trained scale; more at smaller ones"
    )
    parser.add_argument("--device", help="default: the accelerator that torch sees, else cpu")
    parser.add_argument("--dtype", default="auto", help="auto: as saved; or float32, bfloat16, float16")
    parser.add_argument("--no-latency", action="store_true", help="do not measure times and memory, compute cost alone")
    return parser.parse_args(list(argv))


def main(argv: list[str]) -> int:
    """Runs the sweep. 0: every cell was scored; 1: some failed, and which is printed; ValueError: a user's mistake."""
    arguments = parse_arguments(argv)
    check_positive(limit=arguments.limit, batch_size=arguments.batch_size)
    configs = {name: M3Config.from_pretrained(path) for name, path in labels(arguments.models).items()}
    scales = reachable_scales(arguments.scales, configs)
    include = arguments.include_path if arguments.include_path.exists() else None
    run: Path = arguments.out
    run.mkdir(parents=True, exist_ok=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    harness_logger.remove()
    harness_logger.add(run / "lmms_eval.log")
    manager, tasks = load_tasks(arguments.tasks.split(","), include)
    is_writer = Accelerator(
        cpu=default_device(arguments.device) == "cpu"
    ).is_main_process  # joins what torchrun launched
    if is_writer:
        write_json(run / "environment.json", environment(argv))
        write_json(run / "baselines.json", {loaded.name: loaded.baselines for loaded in tasks if loaded.baselines})
    models: list[ModelRow] = []
    cells: list[CellRow] = []
    costs: list[CostRow] = []
    times: list[LatencyRow] = []
    for name, path in labels(arguments.models).items():
        engine = Engine.load(path, local_device(arguments.device), arguments.dtype)
        models.append(describe(name, path, engine))
        with Store(run / "store") as store:
            for loaded in tasks:
                model = StoredModel(engine, scales, arguments.batch_size, loaded, store, f"{name}, {loaded.name}")
                for scale in scales:
                    with (run / "lmms_eval.log").open("a") as log, redirect_stderr(log):
                        cells += run_cell(model, name, loaded, scale, manager, arguments.limit, run)
                    if is_writer:
                        write_rows(run / "cells.csv", CellRow, cells)
        if is_writer:
            text = text_tokens(name, cells)
            costs += [CostRow.of(name, CostModel(engine.model).cost(scale, text)) for scale in scales]
            if not arguments.no_latency:
                measured = measure(engine.model, scales, text, LATENCY_BATCHES)
                times += [LatencyRow.of(name, row) for row in measured]
            write_json(run / "models.json", [vars(model) for model in models])
            write_rows(run / "cost.csv", CostRow, costs)
            write_rows(run / "latency.csv", LatencyRow, times)
            if len(models) == 1:
                write_examples(run, models[0].name, tasks, scales, cells)
        del engine
    failed = [cell for cell in cells if cell.status == "failed"]
    for cell in failed:
        logger.error("FAILED %s, %s at %d tokens: %s", cell.model, cell.task, cell.scale, cell.error)
    if is_writer:
        logger.info("%s: %d cells, %d failed. Next: m3 report %s", run, len(cells), len(failed), run)
    return 1 if failed else 0


def check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")


def labels(paths: Sequence[str]) -> dict[str, str]:
    """A short distinct name for each model: the end of its path, as long as it takes to tell them apart.

    `runs/mine/checkpoints/final`, as training leaves it, is `mine`.
    """
    told = {path: [part for part in Path(path).parts if part not in ("checkpoints", "final", "/")] for path in paths}
    for parts in range(1, 32):
        names = ["_".join(told[path][-parts:]) or path for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"a model is given twice: {', '.join(paths)}")


def reachable_scales(text: str | None, configs: dict[str, M3Config]) -> list[int]:
    """The scales to sweep, ascending, each reachable by every model.

    Raises:
        ValueError: a scale that is no number, or out of reach of a model; its reachable scales are listed.
    """
    if text is None:
        scales = next(iter(configs.values())).nesting.trained_scales
    elif all(part.strip().isdigit() for part in text.split(",")):
        scales = {int(part) for part in text.split(",")}
    else:
        raise ValueError(f"--scales takes numbers of visual tokens with commas, such as 1,9,36; got {text!r}")
    for name, config in configs.items():
        nesting = get_nesting(config.nesting.kind)
        for scale in scales:
            try:
                nesting.count(config.grid, scale)
            except ValueError as error:
                raise ValueError(f"model {name}: {error}") from error
    return sorted(scales)


def describe(name: str, path: str, engine: Engine) -> ModelRow:
    config = engine.model.config
    grid = [config.grid] if isinstance(config.grid, int) else list(config.grid)
    scales, kind = list(config.nesting.trained_scales), config.nesting.kind
    parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    return ModelRow(name, path, engine.weights, scales, grid, kind, parameters)


def text_tokens(name: str, cells: Sequence[CellRow]) -> int:
    """How much text the tasks' prompts had in the mean: cost and latency are those of such a prompt."""
    lengths = [cell.text_tokens for cell in cells if cell.model == name and cell.text_tokens is not None]
    return round(sum(lengths) / len(lengths)) if lengths else 32


def write_examples(
    run: Path, model: str, tasks: Sequence[LoadedTask], scales: Sequence[int], cells: Sequence[CellRow]
) -> None:
    """Saves a few documents of each task, those first whose score the number of tokens changes."""
    examples: list[Example] = []
    with Store(run / "store") as store:
        for loaded in tasks:
            if any(cell.status == "failed" for cell in cells if cell.task == loaded.name):
                continue
            keys = [read_keys(run, model, loaded.name, scale) for scale in scales]
            gain = {
                doc_id: store.scores(keys[-1][doc_id]).get(loaded.metric, 0.0)
                - store.scores(keys[0][doc_id]).get(loaded.metric, 0.0)
                for doc_id in keys[-1]
            }
            for doc_id in sorted(gain, key=lambda doc_id: (-gain[doc_id], doc_id))[:EXAMPLES_PER_TASK]:
                examples.append(_write_example(run, loaded, doc_id))
    write_json(run / "examples" / "examples.json", [vars(example) for example in examples])


def _write_example(run: Path, loaded: LoadedTask, doc_id: int) -> Example:
    document = loaded.task.eval_docs[doc_id]
    visuals = loaded.task.doc_to_visual(document)
    assert isinstance(visuals, list)
    image = Picture.of(visuals[0]).image
    image.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    file = f"{loaded.name}-{doc_id}.png"
    (run / "examples").mkdir(exist_ok=True)
    image.save(run / "examples" / file, optimize=True)
    target = loaded.task.doc_to_target(document)
    return Example(loaded.name, doc_id, str(loaded.task.doc_to_text(document)), str(target), file)
