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

from m3.training.compiling import check_compile, compile_layers
from m3.training.distributed import world
from m3.training.fingerprints import check_tower_fingerprints
from m3.training.hf_arguments import training_arguments
from m3.training.patch_labels import PatchLabelCollator, PatchLabeller, PatchLabellerOutput
from m3.training.recipe import TowerRecipe
from m3.training.resume import check_resume
from m3.training.run_folder import RunFolder
from m3.training.trainer import RunTrainer


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
    options = dict(recipe.vision_config)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = PatchLabeller(
        config, classes=len(suite["patch_classes"]), slots=len(suite["patch_slots"])
    )
    if recipe.hardware.compile:
        compile_layers(model)
    image_processor = SiglipImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size}
    )
    rows = _rows(recipe)
    steps = len(rows) // recipe.schedule.step_samples(world().size)
    arguments = training_arguments(
        run,
        recipe.schedule,
        recipe.optimiser,
        recipe.hardware,
        recipe.learning_rate,
        recipe.workers,
        steps,
    )
    check_tower_fingerprints(run, recipe)
    trainer = RunTrainer(
        run=run,
        measure=_measure,
        model=model,
        args=arguments,
        train_dataset=rows,
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
    """What `m3 data tiny` wrote last."""
    path = Path(recipe.data) / "suite.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; draw the pictures with `m3 data tiny --out {recipe.data}`"
        )
    return json.loads(path.read_text())


def _rows(recipe: TowerRecipe) -> Dataset:
    """The suite's training pictures, shuffled anew every pass, as many as the schedule asks for."""
    files = sorted(str(path) for path in (Path(recipe.data) / "train").glob("*.parquet"))
    if not files:
        raise ValueError(
            f"{recipe.data} has no train/*.parquet; make them with `m3 data tiny "
            f"--out {recipe.data}`"
        )
    rows = load_dataset("parquet", data_files=files, split="train").select_columns(
        ["image", "patch_class", "patch_slot"]
    )
    rows = rows.cast_column("image", Image(decode=False))
    schedule = recipe.schedule
    step = schedule.step_samples(world().size)
    if schedule.steps is not None:
        total = schedule.steps * step
    else:
        assert schedule.epochs is not None  # Schedule makes sure of one of them
        total = math.ceil(len(rows) * schedule.epochs / step) * step  # the last step is filled up
    passes = [
        np.random.default_rng([schedule.seed, n]).permutation(len(rows))
        for n in range(-(-total // len(rows)))
    ]
    return rows.select(np.concatenate(passes)[:total])


def _measure(output: PatchLabellerOutput, share: float) -> dict[str, tuple[float, float]]:
    # PatchLabeller always gives them
    assert output.class_accuracy is not None and output.slot_accuracy is not None
    return {
        "class_accuracy": (float(output.class_accuracy), 1.0),
        "slot_accuracy": (float(output.slot_accuracy), 1.0),
    }
