"""`m3 sweep --baseline`: whether anything fell against an earlier run, for continuous integration.

In: two run folders. Out: the drops beyond the noise; in the log, how every mean stands and what
    could not be compared.
"""

import logging
from pathlib import Path

from m3.evaluation.analysis.compare import Change, change_text, compare, not_compared
from m3.evaluation.analysis.summary import Summary

logger = logging.getLogger(__name__)


def check_baseline(run: Path, baseline: Path) -> None:
    """Before hours of work: the baseline must be a run with scores, and not the one that is
    about to be written.
    """
    if run.resolve() == baseline.resolve():
        raise ValueError(
            f"--baseline {baseline} is the folder of --out: the sweep would be compared with itself"
        )
    Summary.read(baseline)


def fallen(run: Path, baseline: Path) -> list[Change]:
    """Says how every scale stands against `--baseline`; what fell beyond the noise, means and
    single tasks.
    """
    new_run, old_run = Summary.read(run), Summary.read(baseline)
    changes = compare(new_run, old_run)
    silent = not_compared(new_run, old_run)
    if silent:
        logger.warning("NOT compared with %s: %s", baseline, "; ".join(silent))
    drops = [change for change in changes if change.is_drop]
    for change in changes:
        if change.task is None or change.is_drop:
            logger.log(logging.ERROR if change.is_drop else logging.INFO, "%s", change_text(change))
    return drops
