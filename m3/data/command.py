"""`m3 data <verb>`: makes data, or looks at it.

Modules of verbs that read recipes or know benchmarks stand in the layers above; here they are only
named.
"""

import argparse
import importlib
from collections.abc import Mapping

VERBS: Mapping[str, tuple[str, str]] = {  # name -> module with `main(argv) -> int`, help
    "check": (
        "m3.training.data_check",
        "read everything a recipe names, and say what is wrong: RECIPE",
    ),
    "show": (
        "m3.training.data_show",
        "samples with their masks, as they are trained, on a page: RECIPE --out page.html",
    ),
    "tiny": (
        "m3.data.synthetic.command",
        "draw the embedded suite: training parquet and the test set of m3_tiny",
    ),
    "fetch-eval": (
        "m3.evaluation.harness.download",
        "copy a suite's data sets from the hub: SUITE --data-root DIR",
    ),
}


def main(argv: list[str]) -> int:
    """Run the sub-verb that `argv` opens with on the rest of it."""
    lines = "\n".join(f"  {name:<10}  {text}" for name, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="m3 data",
        description=f"verbs:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=tuple(VERBS))
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="`m3 data VERB --help` describes them"
    )
    options = parser.parse_args(argv)
    return importlib.import_module(VERBS[options.verb][0]).main(options.arguments)
