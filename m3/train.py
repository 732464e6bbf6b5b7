"""`m3 train`: training, with the sweep at hand.

Neither knows the other; here, above both, the one is given to the other.
"""

from collections.abc import Callable
from pathlib import Path

from m3.model import M3ForConditionalGeneration
from m3.processing import M3Processor
from m3.training import command
from m3.training.checks.dry_run import planned_config, zero_stage
from m3.training.loop.evaluations import check_folders
from m3.training.recipe.recipe import Recipe


def main(argv: list[str]) -> int:
    """As m3/training/command.py, whose recipes may then say `evaluation`."""
    return command.main(argv, open_benchmarks)


def open_benchmarks(
    recipe: Recipe, folder: Path
) -> Callable[[M3ForConditionalGeneration, M3Processor, int], dict[str, float]]:
    """Build the sweep of the live model of `recipe` into `folder`."""
    from m3.evaluation.sweep.during_training import (
        Choice,
        LiveSweep,
    )  # lmms-eval is imported by the runs that evaluate, and no other

    wanted = recipe.evaluation
    assert wanted is not None  # only then is it asked for
    check_folders(wanted)
    scales = recipe.matryoshka_vis_token_scale if wanted.scales is None else wanted.scales
    choice = Choice(
        wanted.tasks, scales, wanted.limit, wanted.batch_size, wanted.include_path, wanted.data_root
    )
    return LiveSweep(folder, choice, planned_config(recipe) if zero_stage(recipe) == 3 else None)
