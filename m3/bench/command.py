"""`m3 bench WHAT`: ratios of two things measured in one run, and what each scale costs."""

import argparse
import importlib

from m3.bench.options import OPTIONS
from m3.command_line import CommandLine

BENCHES = {
    "step": ("m3.bench.step", "one all-scales training step against the published way"),
    "train": (
        "m3.bench.train",
        "a step on samples of mixed length: packed, padded, row by row, and the published way",
    ),
    "sweep": (
        "m3.bench.sweep",
        "a sweep of all scales against the largest alone, and against lmms-eval per scale",
    ),
    "serve": (
        "m3.bench.serve",
        "a server under load: equal answers, seconds per scale, throughput, memory, a clean end",
    ),
    "cost": (
        "m3.bench.cost",
        "FLOPs, bytes, estimated and measured seconds of every scale, of any configuration",
    ),
    "convert": (
        "m3.bench.convert",
        "the memory of a conversion against the size of the checkpoint",
    ),
}


def main(argv: list[str]) -> int:
    """Run the bench that the first argument names."""
    lines = "\n".join(f"  {bench_name:8}{text}" for bench_name, (_, text) in BENCHES.items())
    parser = CommandLine(
        prog="m3 bench",
        description=f"{__doc__}\n\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=BENCHES)
    bench_name, bench_arguments = parser.parse_args(argv[:1]).what, argv[1:]
    # torch is imported once the command line is known to be good
    OPTIONS[bench_name]().parse_intermixed_args(bench_arguments)
    return importlib.import_module(BENCHES[bench_name][0]).main(bench_arguments)
