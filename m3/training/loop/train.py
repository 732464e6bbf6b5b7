"""`m3 train` of a `Recipe`: one set of weights over the recipe's scales; `checkpoints/final` is a
ready checkpoint.

in: a recipe; way: build -> mixture -> collator (multiscale, packing) -> RunTrainer; out: the run
    folder.
"""

import logging
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from m3.data.collate import Collator
from m3.data.mixture import Mixture, read_mixture
from m3.data.recipe import open_source
from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training.checks.dry_run import check_sharding, plan
from m3.training.checks.fingerprints import check_fingerprints
from m3.training.checks.resume import check_data, check_resume
from m3.training.checks.throughput import meter
from m3.training.loop.distributed import gather_parts_at_once, world
from m3.training.loop.evaluations import Benchmarks, Evaluation, OpenBenchmarks
from m3.training.loop.hf_arguments import training_arguments
from m3.training.loop.router_load import RouterLoad
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.step_metrics import measure
from m3.training.loop.trainer import RunTrainer
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import HeldOut
from m3.training.setup.build import build, warn_of_router
from m3.training.setup.compiling import check_compile
from m3.training.setup.context_length import check_context
from m3.training.setup.liger import check_liger
from m3.training.setup.lora import add_lora, lora_config, merge
from m3.training.setup.new_tokens import NewRows, new_rows, train_rows, unsayable_tokens, warning
from m3.training.setup.parameter_groups import apply_parts
from m3.training.setup.resolved import ResolvedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadyModel:
    """A model whose parts train or are frozen.

    `rates`: learning rate of each parameter that trains; `tables`: of tables of which single rows
    do. `adapted`: the model within PEFT, where there is an adapter.
    """

    model: M3ForConditionalGeneration
    processor: M3Processor
    router: RouterLoad | None
    rates: dict[str, float]
    tables: dict[str, float]
    adapted: PeftModel | None = None


def train_model(recipe: Recipe, open_benchmarks: OpenBenchmarks | None = None) -> RunFolder:
    """Trains, or resumes what was interrupted, or returns at once when the run is finished.

    `open_benchmarks` makes ready what the recipe's `evaluation` names.
    """
    run, resolved = RunFolder(recipe.run), ResolvedRun(recipe, world().size)
    run.check(recipe)
    if run.is_finished:
        return run
    check_resume(run, recipe.schedule, resolved.devices)
    run.start(recipe)
    _check_machine(resolved)
    _check_rows(resolved)
    if world().is_first:
        logger.info("\n%s", plan(resolved))
    if recipe.hardware.threads is not None:
        torch.set_num_threads(recipe.hardware.threads)
    mixture = _mixture(resolved)
    source_names = [data_source.name for data_source in recipe.data.used_sources]
    check_data(run, source_names, [len(data_source) for data_source in mixture.sources])
    token_rows = _new_rows(resolved, mixture)
    check_sharding(recipe, token_rows)
    torch.manual_seed(recipe.schedule.seed)
    lora = None if recipe.adapter is None else lora_config(resolved, token_rows)
    # drawn whole: DeepSpeed shards it when it is wrapped
    new_model = build(resolved) if recipe.model is None else None
    benchmarks = _benchmarks(resolved, run, open_benchmarks)
    # from here on, models are sharded when they are made, if ZeRO-3 is asked for
    arguments = _arguments(resolved, run, len(mixture))
    device = arguments.device  # with it the processes meet
    check_fingerprints(run, recipe, mixture.sources)
    ready = _choose_trained(resolved, *(new_model or build(resolved)), device, lora, token_rows)
    trainer = _trainer(resolved, run, ready, arguments, mixture, benchmarks)
    trainer.run_to_end(
        None if ready.adapted is None else lambda folder: _save_adapted(trainer, recipe, folder)
    )
    return run


def _arguments(resolved: ResolvedRun, run: RunFolder, samples: int) -> TrainingArguments:
    """Arguments of transformers' Trainer for a run over so many samples; they start DeepSpeed."""
    recipe = resolved.recipe
    return training_arguments(
        run,
        recipe.schedule,
        recipe.optimiser,
        recipe.hardware,
        resolved.highest_rate,
        recipe.data.workers,
        samples // resolved.step_samples,
        recipe.report_to,
    )


def _choose_trained(
    resolved: ResolvedRun,
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    device: torch.device,
    lora: LoraConfig | None,
    token_rows: NewRows | None,
) -> ReadyModel:
    """Freezes what the recipe freezes, and adds the adapter and the rows of new tokens."""
    recipe = resolved.recipe
    rates, tables, adapted = apply_parts(model, recipe.parts), {}, None
    if is_deepspeed_zero3_enabled():
        gather_parts_at_once(model)
    router = _router_load(model, device)
    if lora is not None:
        adapted, rates = add_lora(model, lora, rates, recipe.schedule.seed, token_rows)
    elif token_rows is not None:
        tables = train_rows(model, token_rows)
    if recipe.trains_tables:
        # they will not be new to those who begin with what this run leaves
        model.config.new_token_ids = None
    return ReadyModel(model, processor, router, rates, tables, adapted)


def _trainer(
    resolved: ResolvedRun,
    run: RunFolder,
    ready: ReadyModel,
    arguments: TrainingArguments,
    mixture: Mixture,
    benchmarks: tuple[int, Benchmarks] | None,
) -> RunTrainer:
    """The trainer of a model that is ready, with what it measures between its steps."""
    recipe, collator = resolved.recipe, _collator(resolved, ready.processor)
    held_out = None
    if recipe.held_out is not None:
        held_out = recipe.held_out.every, _held_out(recipe.held_out, recipe, collator)
    evaluation = None
    if benchmarks is not None:
        evaluation = Evaluation(benchmarks[0], partial(benchmarks[1], ready.model, ready.processor))
    return RunTrainer(
        run=run,
        measure=measure,
        rates=ready.rates | ready.tables,
        undecayed=frozenset(ready.tables),
        router=ready.router,
        model=ready.adapted or ready.model,
        args=arguments,
        train_dataset=mixture,
        data_collator=collator,
        distil=recipe.distil,
        low_memory=ready.model if recipe.memory == "low" else None,
        meter=meter(ready.model.config),
        held_out=held_out,
        benchmarks=evaluation,
        processing_class=ready.processor,
    )


def _new_rows(resolved: ResolvedRun, mixture: Mixture) -> NewRows | None:
    """Rows of frozen tables that train; a warning where answers hold tokens that the model then
    cannot learn to say.
    """
    processor = resolved.processor
    unsayable = unsayable_tokens(resolved.recipe, processor, mixture.sources)
    token_rows = new_rows(resolved, unsayable)
    if (
        token_rows is not None
        and resolved.recipe.adapter is None
        and os.environ.get("ACCELERATE_USE_FSDP") == "true"
    ):
        raise ValueError(
            "FSDP shards the tables of which single rows (new tokens) would train; take DeepSpeed "
            "or plain data parallelism, or "
            "set parts.new_tokens: frozen"
        )
    if world().is_first and (warned := warning(unsayable, processor, token_rows)):
        logger.warning("%s", warned)
    return token_rows


def _check_machine(resolved: ResolvedRun) -> None:
    """Check what a recipe alone cannot know; a `ValueError` says what to do."""
    recipe = resolved.recipe
    if recipe.model is not None and not (Path(recipe.model) / "config.json").is_file():
        fault = "it has no config.json" if Path(recipe.model).is_dir() else "there is none"
        raise ValueError(
            f"model: {recipe.model} is no checkpoint folder ({fault}, looked from {Path.cwd()}); run "
            "the stage that makes it, or "
            "make one with `m3 convert` or `m3 assemble`, and give model=FOLDER"
        )
    if recipe.model is not None and world().is_first:
        warn_of_router(recipe.model)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.accelerator.is_available():
        # accelerate's state knows FSDP on accelerators alone, and would copy the whole model to
        # every process without a word
        raise ValueError(
            "accelerate shards by FSDP on accelerators alone, and torch sees none; on a CPU take "
            "LAUNCHER=torchrun (whole "
            "copies) or DeepSpeed"
        )
    is_packed = recipe.adapter is not None and recipe.adapter.quantise == "bnb-4bit"
    if recipe.hardware.liger:
        check_liger(resolved.config)
    if recipe.hardware.compile:
        check_compile()
    evaluates = recipe.held_out is not None or recipe.evaluation is not None
    if is_packed and evaluates and not torch.accelerator.is_available():
        # bitsandbytes lays 4-bit weights out anew at the first evaluation on a CPU with
        # AVX512-BF16; from then on their product has no backward, and what lies below gets wrong
        # gradients without a word
        raise ValueError(
            "held_out and evaluation do not go with adapter.quantise: bnb-4bit on a CPU, where "
            "evaluating changes how "
            "bitsandbytes stores the weights; leave them out, or take quantise: bnb-8bit"
        )


def _check_rows(resolved: ResolvedRun) -> None:
    """A `ValueError` where samples are longer than the decoder's positions, or packed rows would
    mix them.
    """
    check_context(resolved.recipe, resolved.config)
    # chosen by trying it on small models, before ZeRO-3 shards all that are made
    _ = resolved.row_attention


def _save_adapted(trainer: RunTrainer, recipe: Recipe, folder: str) -> None:
    """The adapter beside `final`, and the model with the adapter merged into `folder`.

    Every process comes here.
    """
    assert recipe.model is not None  # Recipe makes sure of it
    trainer.save_model(str(trainer.run.adapter))
    unset_hf_deepspeed_config()  # else the first process would load a shard of the base
    if trainer.is_world_process_zero():
        merge(recipe.model, recipe.matryoshka_vis_token_scale, trainer.run.adapter, Path(folder))


def _router_load(model: M3ForConditionalGeneration, device: torch.device) -> RouterLoad | None:
    """Router load of a mixture of experts; None for a dense decoder."""
    routers = model.model.routers
    return (
        RouterLoad(len(routers), int(cast(int, routers[0].num_experts)), device)
        if routers
        else None
    )


def _mixture(resolved: ResolvedRun) -> Mixture:
    schedule = resolved.recipe.schedule
    return read_mixture(
        resolved.recipe.data,
        seed=schedule.seed,
        step_samples=resolved.step_samples,
        steps=schedule.steps,
        epochs=schedule.epochs,
        devices=resolved.devices,
        batch_size=schedule.batch_size,
    )


def _benchmarks(
    resolved: ResolvedRun, run: RunFolder, opened: OpenBenchmarks | None
) -> tuple[int, Benchmarks] | None:
    """Interval of the recipe's benchmarks, and the function that runs them."""
    evaluation = resolved.recipe.evaluation
    if evaluation is None:
        return None
    if opened is None:
        raise ValueError(
            "evaluation needs the sweep, which `m3 train` brings: call m3.train.main, or give "
            "open_benchmarks"
        )
    return evaluation.every, opened(resolved, run.path / "evaluation")


def _held_out(spec: HeldOut, recipe: Recipe, collator: Collator) -> list[dict[str, Tensor]]:
    """Batches of the held-out samples at all scales."""
    samples = open_source(spec.source)
    sample_count, size = min(spec.samples, len(samples)), recipe.schedule.batch_size
    every_scale = replace(
        collator, scales=tuple(recipe.matryoshka_vis_token_scale), teacher_index=False
    )
    batches = [
        every_scale([samples[n] for n in range(batch_start, min(batch_start + size, sample_count))])
        for batch_start in range(0, sample_count, size)
    ]
    return [
        {
            input_name: input_value
            for input_name, input_value in batch.items()
            if input_name != "left_out"
        }
        for batch in batches
    ]


def _collator(resolved: ResolvedRun, processor: M3Processor) -> Collator:
    recipe, data_section = resolved.recipe, resolved.recipe.data
    return Collator(
        processor,
        scales=recipe.scales,
        pack_length=data_section.pack_length,
        max_images=data_section.max_images_per_row,
        max_length=data_section.max_length,
        too_long=data_section.too_long,
        broken=data_section.broken,
        seed=recipe.schedule.seed,
        step_samples=resolved.step_samples,
        scale_weights=recipe.scale_weights,
        teacher_index=recipe.distil is not None,
    )
