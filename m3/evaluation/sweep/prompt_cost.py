"""The cost of the prompts that a sweep really asked: of each its pictures, as they are cut into
tiles, and its words.

In: an engine, and the answers in the store. Out: `CostRow`s of a method at a scale, the mean over
all prompts and over those of each task, and what the dearest takes. Costs grow faster than prompts
do, so the mean is of the prompts' costs, not the cost of a mean prompt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from m3.evaluation.answering.engine import Engine
from m3.evaluation.results.run_folder import CostRow
from m3.evaluation.results.store import Answer
from m3.evaluation.token_reduction.method_cost import method_cost
from m3.model.cost import Cost
from m3.nesting import Budget, Tiles

NO_ANSWER_TEXT = 32
"""Text tokens of the prompt that is counted where nothing was answered."""


@dataclass(frozen=True)
class Prompt:
    """`sizes`: (height, width) of each picture; None: one picture of most tiles."""

    sizes: tuple[tuple[int, int], ...] | None
    text_tokens: int


def prompts_of(answers: Iterable[Answer]) -> Counter[Prompt]:
    """Distinct prompts by cost, and how often each was asked."""
    return Counter(Prompt(answer.sizes, answer.text_tokens) for answer in answers)


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
    budget = engine.processor.budget(scale)
    costs = {
        prompt: method_cost(
            *(engine.outline, method, budget),
            prompt.text_tokens,
            tiles_of(engine, prompt.sizes, budget),
        )
        for prompt in all_prompts
    }
    return [
        _mean(costs, name, scale, task, prompts)
        for task, prompts in {"": all_prompts, **asked_prompts}.items()
    ]


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
