"""M3: elastic visual tokens. One set of weights serves every number of visual tokens per image."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

try:
    from m3.auto import M3Config, M3ForConditionalGeneration, M3Processor
    from m3.inference import ask, load
except (ImportError, RuntimeError) as error:
    # torch or transformers is absent or too old, or fails with a torchvision built for another
    # torch (it then raises either of the two). `m3 doctor` lives in this package and must run all
    # the same, to say what to do.
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "m3":
        raise
    warnings.warn(
        f"M3's model cannot be imported: {error}\nRun `m3 doctor`: it says what to do.",
        stacklevel=2,
    )


def load_run(run: str | Path) -> "pandas.DataFrame":
    """The table of a sweep's run folder: a row per model, method, task and budget."""
    # pandas and the evaluation are imported by those who ask for a run alone
    from m3.evaluation.analysis import run_table

    return run_table.load_run(run)


__all__ = ["M3Config", "M3ForConditionalGeneration", "M3Processor", "ask", "load", "load_run"]
__version__ = "0.1.0"
