"""`m3 train`: training, with the sweep at hand.

Neither knows the other; here, above both, the one is given to the other.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from m3.training import command

if TYPE_CHECKING:
    from m3.model import M3ForConditionalGeneration
    from m3.processing import M3Processor
    from m3.training.setup.resolved import ResolvedRun


def main(argv: list[str]) -> int:
    """As m3/training/command.py, whose recipes may then say `evaluation`."""
    return command.main(argv, open_benchmarks)


def open_benchmarks(
    resolved: "ResolvedRun", folder: Path
) -> Callable[["M3ForConditionalGeneration", "M3Processor", int], dict[str, float]]:
    """Build the sweep of the live model of a run into `folder`."""
    # lmms-eval is imported by the runs that evaluate, and no other
    from m3.evaluation.sweep.during_training import LiveSweep
    from m3.evaluation.sweep.options import SweepOptions
    from m3.training.checks.dry_run import zero_stage
    from m3.training.loop.evaluations import check_folders

    recipe, wanted = resolved.recipe, resolved.recipe.evaluation
    assert wanted is not None  # only then is it asked for
    check_folders(wanted)
    options = SweepOptions(
        models=(recipe.run,),
        tasks=wanted.tasks,
        scales=recipe.matryoshka_vis_token_scale if wanted.scales is None else wanted.scales,
        out=folder,
        include_path=Path(wanted.include_path),
        data_root=None if wanted.data_root is None else Path(wanted.data_root),
        limit=wanted.limit,
        batch_size=wanted.batch_size,
        measures_latency=False,
        command=tuple(sys.argv),
    )
    return LiveSweep(options, resolved.config if zero_stage(recipe) == 3 else None)
