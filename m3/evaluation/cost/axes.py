"""The axes of cost: what a budget's score is set against in tables, charts, page and notebook.

In: the computed cost of a prompt, and what was measured where something was. Out: a number per
axis. An axis is a row of `COST_AXES`; every table and chart takes its columns and labels from
there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from m3.evaluation.cost.latency import Measured
from m3.model.cost import Cost


@dataclass(frozen=True)
class CostAxis:
    """value: (cost of a prompt, latency or None) -> a number in the label's unit; None: not known.

    is_measured: on this machine, for one mean prompt; else computed for the prompts of each task.
    title: the words behind "Mean, by" over a printed panel; "": not printed.
    """

    label: str
    value: Callable[[Cost, Measured | None], float | None]
    title: str = ""
    is_measured: bool = False


COST_AXES: Mapping[str, CostAxis] = {
    "visual_tokens": CostAxis(
        "visual tokens in the prompt (mean)",
        lambda cost, measured: float(cost.visual_tokens),
        "visual tokens",
    ),
    "first_token_gflops": CostAxis(
        "GFLOP to the first token (computed)",
        lambda cost, measured: cost.first_token_flops / 1e9,
        "computation",
    ),
    "kv_cache_kb": CostAxis(
        "KV cache in kB (computed)", lambda cost, measured: cost.kv_cache_bytes / 1e3
    ),
    "first_token_ms": CostAxis(
        "ms to the first token (measured)",
        lambda cost, measured: None if measured is None else measured.first_token_s * 1e3,
        "measured latency",
        is_measured=True,
    ),
    "cpu_time_ms": CostAxis(
        "ms of CPU time to the first token (measured)",
        lambda cost, measured: None if measured is None else measured.first_token_cpu_s * 1e3,
        is_measured=True,
    ),
}
"""Column of the run's table -> axis."""
BY_TOKENS = "visual_tokens"
