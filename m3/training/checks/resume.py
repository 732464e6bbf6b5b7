"""Checks of a resumed run against its beginning: the samples of a step, and the devices that ZeRO
has sharded for.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from m3.files import write_text
from m3.training.loop.distributed import world
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.sections import Schedule

SAMPLES = "data.json"
"""Name of the file in a run's folder that says how many samples each source held."""


def check_data(run: RunFolder, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Check that the sources hold what they held when the run began; a new run writes it down.

    Raises:
        ValueError: another number of samples, so that every position in the data would mean another
            one.
    """
    source_sizes = [
        [source_name, sample_count] for source_name, sample_count in zip(names, sizes, strict=True)
    ]
    samples_file = run.path / SAMPLES
    if run.newest_checkpoint() is not None and samples_file.exists():
        for (source_name, size_now), (_, before) in zip(
            source_sizes, json.loads(samples_file.read_text()), strict=True
        ):  # of one recipe: the same sources
            if size_now != before:
                raise ValueError(
                    f"{run.path} was trained on {before} samples of {source_name}, which holds "
                    f"{size_now} now, so the run would go on with others than it was going to. Put "
                    "the data back, or begin a new run (run=FOLDER)"
                )
    elif world().is_first:
        write_text(samples_file, json.dumps(source_sizes) + "\n")


def check_resume(run: RunFolder, schedule: Schedule, devices: int) -> None:
    """Check that so many devices can go on from the newest checkpoint, if there is one.

    DeepSpeed could read ZeRO's shards on other numbers by way of its universal checkpoints, but of
    ZeRO-3 it then gives every group of parameters the settings of the first
    (load_hp_checkpoint_state_from_checkpoint_dir_stage3 in its stage3.py of 0.19), and of ZeRO-2 it
    converts only what a client has annotated. A recipe has rates by part, so that is not offered.

    Raises:
        ValueError: a step would hold another number of samples, so that positions in the data would
            mean other samples; the checkpoint is that of other devices under ZeRO.
    """
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        return
    before = run.processes
    if before is not None and schedule.step_samples(before) != schedule.step_samples(devices):
        raise ValueError(
            f"{run.path} was trained on {before} devices, {schedule.step_samples(before)} samples "
            f"a step; on {devices} a step "
            f"would hold {schedule.step_samples(devices)}, and the run would go on with other "
            f"samples. Take {before} devices "
            "again, or begin a new run (run=FOLDER) with schedule.global_batch, which keeps a "
            "step's samples on any number"
        )
    shards = len(list(Path(checkpoint).glob("global_step*/*_optim_states.pt")))
    if shards not in (0, devices):
        anew_text = (
            f" (model={checkpoint} run=FOLDER)"
            if (Path(checkpoint) / "config.json").is_file()
            else ""
        )
        raise ValueError(
            f"{checkpoint} holds ZeRO's shards of the optimiser for {shards} devices, and this run "
            f"has {devices}. Take {shards} "
            f"devices again, or begin a new run from its weights{anew_text}, with a fresh optimiser"
        )
