"""`m3 train` of a `Recipe`: one set of weights over the recipe's scales; `checkpoints/final` is a ready checkpoint.

in: a recipe; way: build -> mixture -> collator (multiscale, packing) -> RunTrainer; out: the run folder.
"""

import logging
import os

import torch

from m3.config import dump
from m3.data.collate import Collator
from m3.data.mixture import Mixture
from m3.data.read import read_mixture
from m3.processing import M3Processor
from m3.training.arguments import training_arguments
from m3.training.build import build
from m3.training.objective import measure
from m3.training.recipe import Recipe
from m3.training.run_folder import RunFolder
from m3.training.stages import apply_parts, parameter_table
from m3.training.trainer import RunTrainer

logger = logging.getLogger(__name__)


def train_model(recipe: Recipe) -> RunFolder:
    """Trains, or resumes what was interrupted, or returns at once when the run is finished."""
    run = RunFolder(recipe.run)
    run.start(dump(recipe))
    if run.is_finished:
        return run
    if recipe.hardware.threads is not None:
        torch.set_num_threads(recipe.hardware.threads)
    schedule = recipe.schedule
    world_samples = schedule.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    mixture = _mixture(recipe, world_samples)
    torch.manual_seed(schedule.seed)
    model, processor = build(recipe)
    rates = apply_parts(model, recipe.parts)
    logger.info("\n%s", parameter_table(model))
    steps = len(mixture) // (world_samples * schedule.accumulation)
    trainer = RunTrainer(
        run=run,
        measure=measure,
        rates=rates,
        model=model,
        args=training_arguments(
            run, schedule, recipe.optimiser, recipe.hardware, max(rates.values()), recipe.data.workers, steps
        ),
        train_dataset=mixture,
        data_collator=_collator(recipe, processor, world_samples),
        processing_class=processor,
    )
    trainer.run_to_end()
    return run


def _mixture(recipe: Recipe, world_samples: int) -> Mixture:
    schedule = recipe.schedule
    return read_mixture(
        recipe.data,
        seed=schedule.seed,
        step_samples=world_samples * schedule.accumulation,
        steps=schedule.steps,
        epochs=schedule.epochs,
        devices=world_samples // schedule.batch_size,
        batch_size=schedule.batch_size,
    )


def _collator(recipe: Recipe, processor: M3Processor, world_samples: int) -> Collator:
    data = recipe.data
    return Collator(
        processor,
        scales=recipe.scales,
        pack_length=data.pack_length,
        max_images=data.max_images_per_row,
        max_length=data.max_length,
        overlong="error" if data.too_long == "refuse" else "drop",
        broken=data.broken,
        seed=recipe.schedule.seed,
        step_samples=world_samples,
    )
