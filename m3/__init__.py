"""M3: elastic visual tokens. One set of weights serves every number of visual tokens per image.

Public names are imported when they are first asked for, so that `import m3`, and with it a help
text or the answer to a typo, waits for neither torch nor transformers. `import m3.auto` makes M3
known to transformers' Auto classes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from m3.auto import M3Config, M3ForConditionalGeneration, M3Processor
    from m3.inference import ask, load


def __getattr__(name: str) -> Any:
    """A public name; an `ImportError` says what to do where torch or transformers is absent, too
    old, or fails with a torchvision built for another torch.
    """
    if name not in __all__:
        raise AttributeError(f"module 'm3' has no attribute {name!r}")
    try:
        from m3 import auto, inference
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "m3":
            raise
        raise ImportError(
            f"M3's model cannot be imported: {error}\nRun `m3 doctor`: it says what to do."
        ) from error
    public_names = {
        "M3Config": auto.M3Config,
        "M3ForConditionalGeneration": auto.M3ForConditionalGeneration,
        "M3Processor": auto.M3Processor,
        "ask": inference.ask,
        "load": inference.load,
    }
    return public_names[name]


def load_run(run: str | Path) -> "pandas.DataFrame":
    """The table of a sweep's run folder: a row per model, method, task and budget."""
    # pandas and the evaluation are imported by those who ask for a run alone
    from m3.evaluation.analysis import run_table

    return run_table.load_run(run)


__all__ = ["M3Config", "M3ForConditionalGeneration", "M3Processor", "ask", "load", "load_run"]
__version__ = "0.1.0"
