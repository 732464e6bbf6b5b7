"""Latency of a choice among budgets: that of the budgets it fell on, and of choosing.

In: what was measured at fixed budgets, and how often the choice fell on each. Out: a `Measured` of the
choice: the mean over its budgets, with the router's time where a router chose, and the time of the
look at the cheapest view where another resolution is read. Both are measured here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from m3.evaluation.cost.latency import Measured, Seconds, low_quantile, now, since
from m3.model import M3ForConditionalGeneration
from m3.model.vision import vision_inputs
from m3.nesting import read_budget

REPEATS = 20


def choice_latency(
    choice: int | str,
    shares: Mapping[int | str, float],
    measured: Sequence[Measured],
    choosing: Mapping[int, Seconds],
) -> list[Measured]:
    """One per batch size; none where a budget that was chosen was not measured.

    `shares`: of each budget in the choice. `choosing`: see `time_choosing`; empty where no router
    chose.
    """
    rows = []
    for batch_size in dict.fromkeys(row.batch_size for row in measured):
        by_scale = {row.scale: row for row in measured if row.batch_size == batch_size}
        if not set(shares) <= set(by_scale):
            return []
        rows.append(_mixed(choice, shares, by_scale, choosing.get(batch_size)))
    return rows


def _mixed(
    choice: int | str,
    shares: Mapping[int | str, float],
    by_scale: Mapping[int | str, Measured],
    choosing: Seconds | None,
) -> Measured:
    def mean(name: str) -> float:
        return sum(share * getattr(by_scale[scale], name) for scale, share in shares.items())

    names = ("first_token_s", "first_token_spread_s", "first_token_cpu_s")
    names += ("first_token_cpu_spread_s", "token_s", "token_spread_s", "token_cpu_s")
    means = {name: mean(name) for name in names}
    if choosing is not None:
        means["first_token_s"] += choosing.wall
        means["first_token_cpu_s"] += choosing.cpu
    some = next(iter(by_scale.values()))
    peak = max(by_scale[scale].peak_bytes for scale in shares)
    return replace(some, scale=choice, peak_bytes=peak, **means)


@torch.no_grad()
def time_choosing(
    model: M3ForConditionalGeneration,
    shares: Mapping[int | str, float],
    text_tokens: int,
    batch_sizes: Sequence[int],
) -> dict[int, Seconds]:
    """Batch size -> time of the router, and of the looks that are taken beside the budgets' own."""
    choice = model.config.budget_choice
    assert choice is not None  # a router chose
    looks = sum(s for scale, s in shares.items() if read_budget(scale).resolution != choice.view)
    encoder, vision = vision_inputs(model.config.vision_config), model.config.vision_config
    side = model.config.tile_side(choice.view)
    size = encoder.image_size(vision) if choice.view is None else (side, side)
    prompt = [token for token in range(8) if token != model.config.image_token_id]
    prompt = (prompt * text_tokens)[:text_tokens]
    times = {}
    for batch_size in batch_sizes:
        pixels = torch.rand(batch_size, 3, *size, device=model.device)
        views, routes = [], []
        for _ in range(REPEATS):
            started = now(model.device)
            tokens = model.get_image_features(pixels).pooler_output
            views.append(since(started, model.device))
            assert tokens is not None  # get_image_features always gives it
            started = now(model.device)
            model.model.predict_values(tokens, [prompt] * batch_size)
            routes.append(since(started, model.device))
        wall, cpu = (
            looks * low_quantile([getattr(timed, kind) for timed in views])
            + low_quantile([getattr(timed, kind) for timed in routes])
            for kind in ("wall", "cpu")
        )
        times[batch_size] = Seconds(wall, cpu)
    return times
