"""The finding of a run in one sentence: the cheapest budget that keeps nearly all of the score, and
what it costs.

In: a `Summary`. Out: the sentence that report.html opens with, and the budget that it is about,
which the table of retention marks too.
"""

import math

from m3.evaluation.analysis.frontier import has_resolutions, sufficient
from m3.evaluation.analysis.metric_kind import LESS
from m3.evaluation.analysis.summary import Summary
from m3.nesting import read_budget

SHARE = 0.95
"""Of the largest budget's score, that counts as nearly all of it."""


def finding(summary: Summary) -> str:
    """The first model's cheapest budget that keeps `SHARE`, or that none does; empty where one
    budget alone was scored.

    The share is that of the table of retention, a mean over tasks of ratios, with its interval; the
    budget is chosen by the mean score.
    """
    model = summary.models[0].name
    curve = summary.curve(model)
    if len(curve) < 2:
        return ""
    largest_scale = max(curve, key=read_budget)
    budget = sufficient_budget(summary, model)
    kept_text = None if budget is None else _kept_text(summary, budget)
    if budget is None or kept_text is None or largest_scale != summary.scales[-1]:
        return _ends(summary)
    if budget == largest_scale:
        next_budget = sorted(curve, key=read_budget)[-2]
        next_text = _kept_text(summary, next_budget)
        return (
            f"No smaller budget keeps {100 * SHARE:.0f} % of what {model} scores with "
            f"{_budget_text(largest_scale)}; the next, {_budget_text(next_budget)}, keeps "
            f"{next_text}{_tasks_text(summary)}."
        )
    is_smaller = "@" in str(budget) and "@" not in str(largest_scale)
    full_size = " at full size" if is_smaller else ""
    return (
        f"{model} keeps {kept_text} of its score with {_budget_text(budget)} instead of "
        f"{largest_scale}{full_size}{_operations_text(summary, budget, largest_scale)}{_tasks_text(summary)}."
    )


def sufficient_budget(summary: Summary, model: str) -> int | str | None:
    """The cheapest budget of a model that keeps `SHARE` of its largest one's mean score; None where
    the score has no share to keep.
    """
    kind = summary.kind(None)
    if not (kind.higher_is_better or kind.is_share):
        return None
    scores = good_scores(summary, model)
    costs = plane_costs(summary, model)
    return sufficient(scores, SHARE, costs) if scores else None


def good_scores(summary: Summary, model: str) -> dict[int | str, float]:
    """Budget -> mean score, more being better: a share of errors e keeps what 100 - e keeps; of an
    error in points there is no share to keep.
    """
    sign = 1.0 if summary.kind(None).higher_is_better else -1.0
    offset = 0.0 if sign > 0 else 100.0
    return {scale: sign * mean.value + offset for scale, mean in summary.curve(model).items()}


def plane_costs(summary: Summary, model: str) -> dict[int | str, float] | None:
    """Operations to the first token by budget, where resolutions differ and tokens alone order
    nothing; None where they do not, or where the run counted none.
    """
    scales = list(summary.curve(model))
    costs = {scale: summary.cost(model, scale) for scale in scales}
    known = {scale: float(c.first_token_flops) for scale, c in costs.items() if c is not None}
    return known if has_resolutions(scales) and len(known) == len(scales) else None


def _budget_text(budget: int | str) -> str:
    tokens, _, side = str(budget).partition("@")
    plural = "" if tokens == "1" else "s"
    return f"{tokens} visual token{plural}" + (f" at {side} pixels" if side else "")


def _kept_text(summary: Summary, budget: int | str) -> str | None:
    """98.6 % (95 % interval 97.2 to 99.9); without the interval where there is none."""
    kept = summary.retention(summary.models[0].name, budget)
    if kept is None:
        return None
    if math.isnan(kept.low) or math.isinf(kept.high):
        return f"{kept.value:.1f} %"
    return f"{kept.value:.1f} % (95 % interval {kept.low:.1f} to {kept.high:.1f})"


def _operations_text(summary: Summary, budget: int | str, largest: int | str) -> str:
    model = summary.models[0].name
    cost, largest_cost = summary.cost(model, budget), summary.cost(model, largest)
    if cost is None or largest_cost is None or not largest_cost.first_token_flops:
        return ""
    share = 100 * cost.first_token_flops / largest_cost.first_token_flops
    return f", at {share:.0f} % of the operations to the first token"


def _tasks_text(summary: Summary) -> str:
    count = len(summary.averaged)
    mean_text = f", as the mean of {count} tasks" if count > 1 else ""
    return mean_text + ("" if summary.kind(None).higher_is_better else f" ({LESS})")


def _ends(summary: Summary) -> str:
    """The scores at both ends of the curve, where there is no share to tell."""
    model = summary.models[0].name
    curve = summary.curve(model)
    least, most = min(curve, key=read_budget), max(curve, key=read_budget)
    return (
        f"{model} scores {curve[most].value:.1f} with {_budget_text(most)} per image and "
        f"{curve[least].value:.1f} with {_budget_text(least)}{_tasks_text(summary)}."
    )
