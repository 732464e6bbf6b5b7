"""`m3 train` of a `ResolutionRecipe`; `checkpoints/final` is the model with another tower and
connector, ready to be trained over its ladder.
"""

from functools import partial

import torch

from m3.data.mixture import read_mixture
from m3.nesting import read_ladder, resolutions
from m3.training.checks.fingerprints import check_fingerprints
from m3.training.checks.resume import check_data, check_resume
from m3.training.loop.distributed import world
from m3.training.loop.hf_arguments import training_arguments
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.trainer import RunTrainer
from m3.training.recipe.resolution_recipe import ResolutionRecipe
from m3.training.resolutions.distiller import DistillerOutput, PictureCollator, ResolutionDistiller
from m3.training.setup.build import load_checkpoint, warn_of_router


def train_resolutions(recipe: ResolutionRecipe) -> RunFolder:
    """Trains, or resumes what was interrupted, or returns at once when the run is finished.

    Raises:
        ValueError: a model whose tokens at two resolutions cannot be compared, data without pictures.
    """
    run, schedule, devices = RunFolder(recipe.run), recipe.schedule, world().size
    run.check(recipe)
    if run.is_finished:
        return run
    check_resume(run, schedule, devices)
    run.start(recipe)
    if recipe.hardware.threads is not None:
        torch.set_num_threads(recipe.hardware.threads)
    mixture = read_mixture(
        recipe.data,
        seed=schedule.seed,
        step_samples=schedule.step_samples(devices),
        steps=schedule.steps,
        epochs=schedule.epochs,
        devices=devices,
        batch_size=schedule.batch_size,
    )
    names = [source.name for source in recipe.data.used_sources]
    check_data(run, names, [len(source) for source in mixture.sources])
    arguments = training_arguments(
        run,
        schedule,
        recipe.optimiser,
        recipe.hardware,
        recipe.resolution_distillation.learning_rate,
        recipe.data.workers,
        len(mixture) // schedule.step_samples(devices),
    )
    check_fingerprints(run, recipe, mixture.sources)
    if world().is_first:
        warn_of_router(recipe.model)
    model, processor = load_checkpoint(recipe.model, recipe.matryoshka_vis_token_scale)
    sides = resolutions(read_ladder(recipe.matryoshka_vis_token_scale))
    distiller = ResolutionDistiller(model.model, {side: recipe.weight(side) for side in sides})
    trainer = RunTrainer(
        run=run,
        measure=partial(_measure, sides),
        model=distiller,
        args=arguments,
        train_dataset=mixture,
        data_collator=PictureCollator(processor, sides),
        processing_class=processor,
    )

    def save(folder: str) -> None:
        if trainer.is_world_process_zero():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    trainer.run_to_end(save)
    return run


def _measure(
    sides: tuple[int | None, ...], output: DistillerOutput, share: float
) -> dict[str, tuple[float, float]]:
    assert output.errors is not None  # ResolutionDistiller always gives them
    names = [f"error_{'full' if side is None else side}" for side in sides]
    return {name: (error, 1.0) for name, error in zip(names, output.errors.tolist(), strict=True)}
