"""The cost of the prompts that a sweep really asked: of each its pictures, as they are cut into
tiles, and its words.

In: an engine, and the answers in the store. Out: `CostRow`s of a method at a scale, the mean over
all prompts and over those of each task, and what the dearest takes. Costs grow faster than prompts
do, so the mean is of the prompts' costs, not the cost of a mean prompt.

A choice among budgets costs what the budgets that it chose cost; where the model's router chose, its
operations count as the connector's, and a look at a view that is not the one that is read as the
tower's and the connector's.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from m3.evaluation.answering.engine import Engine
from m3.evaluation.results.run_folder import CostRow
from m3.evaluation.results.store import Answer
from m3.evaluation.token_reduction.method_cost import method_cost
from m3.model.cost import Cost, CostModel
from m3.nesting import Budget, Tiles
from m3.processing.scale_policy import Auto, is_budget, read_policy

NO_ANSWER_TEXT = 32
"""Text tokens of the prompt that is counted where nothing was answered."""


@dataclass(frozen=True)
class Prompt:
    """`sizes`: (height, width) of each picture; None: one picture of most tiles. `scale`: the budget
    that was answered at, budgets of several pictures with commas.
    """

    sizes: tuple[tuple[int, int], ...] | None
    text_tokens: int
    scale: int | str = ""


def prompts_of(answers: Iterable[Answer]) -> Counter[Prompt]:
    """Distinct prompts by cost, and how often each was asked."""
    return Counter(
        Prompt(answer.sizes, answer.text_tokens, answer.cell.scale) for answer in answers
    )


def costs_of(
    engine: Engine, name: str, method: str, scale: int | str, tasks: Mapping[str, Counter[Prompt]]
) -> list[CostRow]:
    """Cost of all prompts at a scale, their tokens chosen by `method`, then of each task's; `name`:
    of the rows.

    Where none was asked, one row: that of a picture of most tiles and `NO_ANSWER_TEXT`.
    """
    asked_prompts = {task: prompts for task, prompts in tasks.items() if prompts}
    all_prompts = sum(asked_prompts.values(), Counter[Prompt]()) or Counter(
        [Prompt(None, NO_ANSWER_TEXT)]
    )
    if is_budget(scale):
        budget = engine.processor.budget(scale)
        costs = {
            prompt: method_cost(
                *(engine.outline, method, budget),
                prompt.text_tokens,
                tiles_of(engine, prompt.sizes, budget),
            )
            for prompt in all_prompts
        }
    else:
        formulas = CostModel(engine.outline)
        costs = {
            prompt: choice_cost(engine, formulas, scale, prompt)
            for prompt in all_prompts
            if prompt.sizes is not None
        }
        if not costs:
            return []
    return [
        _mean(costs, name, scale, task, prompts)
        for task, prompts in {"": all_prompts, **asked_prompts}.items()
    ]


def choice_cost(engine: Engine, formulas: CostModel, choice: int | str, prompt: Prompt) -> Cost:
    """Cost of a prompt at the budgets that `choice` fell on, with what the choice took."""
    sizes, processor = prompt.sizes or (), engine.processor
    words = str(prompt.scale).split(",")
    budgets = [processor.budget(word) for word in words]
    budgets = budgets * len(sizes) if len(words) == 1 else budgets
    tiles = processor.outlines(sizes, budgets)
    seen = Counter[int | None]()
    connector = 0
    for budget, picture in zip(budgets, tiles, strict=True):
        seen[budget.resolution] += picture.number
        connector += picture.number * (
            formulas.connector_flops(budget.resolution)
            + formulas.reducer_flops(budget.tokens, budget.resolution)
        )
    visual = sum(processor.counts(budgets, tiles))
    cost = formulas.prompt_cost(choice, visual, prompt.text_tokens, seen)
    vision, router = cost.vision_flops, engine.model.model.budget_router
    view = engine.model.config.budget_choice
    if isinstance(read_policy(choice), Auto) and router is not None and view is not None:
        looks = sum(budget.resolution != view.view for budget in budgets)
        grid = formulas.config.grid_at(view.view)
        tokens = grid if isinstance(grid, int) else math.prod(grid)
        vision += looks * formulas.vision_flops(view.view)
        connector += looks * formulas.connector_flops(view.view)
        connector += len(budgets) * router.flops(tokens, prompt.text_tokens)
    return replace(cost, vision_flops=vision, connector_flops=connector)


def _mean(
    costs: Mapping[Prompt, Cost], name: str, scale: int | str, task: str, prompts: Counter[Prompt]
) -> CostRow:
    prompt_count = prompts.total()
    sums = {
        cost_field.name: sum(
            asdict(costs[one_prompt])[cost_field.name] * n for one_prompt, n in prompts.items()
        )
        for cost_field in fields(Cost)
        if cost_field.name != "scale"
    }
    return CostRow(
        **{name: round(cost_sum / prompt_count) for name, cost_sum in sums.items()},
        scale=scale,
        model=name,
        prompts=prompt_count,
        most_visual_tokens=max(costs[one_prompt].visual_tokens for one_prompt in prompts),
        most_first_token_flops=max(costs[one_prompt].first_token_flops for one_prompt in prompts),
        task=task,
    )


def tiles_of(
    engine: Engine, sizes: Sequence[tuple[int, int]] | None, budget: Budget
) -> list[Tiles]:
    """Tiles of pictures at the budget's resolution; of one with most of them without sizes."""
    if sizes is None:
        return [engine.model.config.tiles(budget.resolution)]
    return engine.processor.outlines(sizes, [budget] * len(sizes))
