"""`m3 sweep`: models x methods x budgets x tasks.

A file of its own, so that a help text or a typo waits for no torch.
"""

from m3.evaluation.sweep.options import parse_options


def main(argv: list[str]) -> int:
    """Read the command line and run the sweep; see `run_sweep`."""
    options = parse_options(argv)
    # torch and the harness are imported once the command line is known to be good
    from m3.evaluation.sweep.sweep import run_sweep

    return run_sweep(options)
