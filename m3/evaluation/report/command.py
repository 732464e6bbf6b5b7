"""`m3 report RUN [OLDER]`: tables, figures and one page of a sweep, from what is on the disk alone.

In: a run folder that `m3 sweep --out` wrote; with a second one, what changed since it. Out, in the
run folder: summary.csv, expert_load.csv (of a mixture of experts), accuracy_vs_cost.png,
report.html, figures/*.{svg,pdf,png}, tables/*.{tex,md}; the table of scores on the screen.
"""

import argparse
from pathlib import Path

from m3.command_line import CommandLine
from m3.hardware import ACCELERATORS

PRINT = ("svg", "pdf", "png")


def main(argv: list[str]) -> int:
    """Writes the report of a finished (or half-finished) sweep and prints its scores."""
    parser = CommandLine(
        prog="m3 report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder given to m3 sweep --out")
    parser.add_argument("older", type=Path, nargs="?", help="another such folder, to compare with")
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default="H100", help="whose roofline is estimated"
    )
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=PRINT,
        default=PRINT,
        help="files of each figure (default: all); none: no figures",
    )
    arguments = parser.parse_args(argv)
    # what draws is imported once the command line is known to be good
    from m3.evaluation.report.writing import write_report

    print(write_report(arguments.run, arguments.older, arguments.accelerator, arguments.formats))
    return 0
