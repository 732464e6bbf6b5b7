"""`m3 train` of a `TowerRecipe`: an encoder learns what lies on each patch; `checkpoints/final`
is a plain vision model.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from transformers import AutoConfig, SiglipImageProcessorPil

from m3.training.checks.fingerprints import check_tower_fingerprints
from m3.training.checks.resume import check_resume
from m3.training.loop.distributed import world
from m3.training.loop.hf_arguments import training_arguments
from m3.training.loop.patch_labels import PatchLabelCollator, PatchLabeller, PatchLabellerOutput
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.trainer import RunTrainer
from m3.training.recipe.recipe import TowerRecipe
from m3.training.setup.compiling import check_compile, compile_layers


def train_tower(recipe: TowerRecipe) -> RunFolder:
    """Trains (or resumes) the encoder; returns its run folder.

    `recipe.data` is a folder that `m3 data tiny` wrote.
    """
    run = RunFolder(recipe.run)
    run.check(recipe)
    if run.is_finished:
        return run
    check_resume(run, recipe.schedule, world().size)
    run.start(recipe)
    if recipe.hardware.threads is not None:
        torch.set_num_threads(recipe.hardware.threads)
    if recipe.hardware.compile:
        check_compile()
    suite = _suite(recipe)
    torch.manual_seed(recipe.schedule.seed)
    vision_options = dict(recipe.vision_config)
    config = AutoConfig.for_model(vision_options.pop("model_type"), **vision_options)
    model = PatchLabeller(
        config, classes=len(suite["patch_classes"]), slots=len(suite["patch_slots"])
    )
    if recipe.hardware.compile:
        compile_layers(model)
    image_processor = SiglipImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size}
    )
    suite_rows = _rows(recipe)
    epoch_steps = len(suite_rows) // recipe.schedule.step_samples(world().size)
    arguments = training_arguments(
        run,
        recipe.schedule,
        recipe.optimiser,
        recipe.hardware,
        recipe.learning_rate,
        recipe.workers,
        epoch_steps,
    )
    check_tower_fingerprints(run, recipe)
    trainer = RunTrainer(
        run=run,
        measure=_measure,
        model=model,
        args=arguments,
        train_dataset=suite_rows,
        data_collator=PatchLabelCollator(image_processor),
        processing_class=image_processor,
    )

    def save(folder: str) -> None:
        if trainer.is_world_process_zero():
            model.encoder.save_pretrained(folder)
            image_processor.save_pretrained(folder)

    trainer.run_to_end(save)
    return run


def _suite(recipe: TowerRecipe) -> dict:
    """The suite that `m3 data tiny` wrote last."""
    suite_file = Path(recipe.data) / "suite.json"
    if not suite_file.is_file():
        raise ValueError(
            f"{suite_file} is missing; draw the pictures with `m3 data tiny --out {recipe.data}`"
        )
    return json.loads(suite_file.read_text())


def _rows(recipe: TowerRecipe) -> Dataset:
    """The suite's training pictures, shuffled anew every pass, as many as the schedule asks for."""
    parquet_files = sorted(
        str(parquet_file) for parquet_file in (Path(recipe.data) / "train").glob("*.parquet")
    )
    if not parquet_files:
        raise ValueError(
            f"{recipe.data} has no train/*.parquet; make them with `m3 data tiny "
            f"--out {recipe.data}`"
        )
    suite_rows = load_dataset("parquet", data_files=parquet_files, split="train").select_columns(
        ["image", "patch_class", "patch_slot"]
    )
    suite_rows = suite_rows.cast_column("image", Image(decode=False))
    schedule = recipe.schedule
    step = schedule.step_samples(world().size)
    if schedule.steps is not None:
        total_samples = schedule.steps * step
    else:
        assert schedule.epochs is not None  # Schedule makes sure of one of them
        total_samples = (
            math.ceil(len(suite_rows) * schedule.epochs / step) * step
        )  # the last step is filled up
    passes = [
        np.random.default_rng([schedule.seed, n]).permutation(len(suite_rows))
        for n in range(-(-total_samples // len(suite_rows)))
    ]
    return suite_rows.select(np.concatenate(passes)[:total_samples])


def _measure(output: PatchLabellerOutput, share: float) -> dict[str, tuple[float, float]]:
    # PatchLabeller always gives them
    assert output.class_accuracy is not None and output.slot_accuracy is not None
    return {
        "class_accuracy": (float(output.class_accuracy), 1.0),
        "slot_accuracy": (float(output.slot_accuracy), 1.0),
    }
