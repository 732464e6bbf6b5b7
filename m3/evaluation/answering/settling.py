"""Settling of questions: which budget each of their pictures has, before any of them is answered.

In:  questions at a budget (36, "36@48"), a schedule over frames ("144+1"), or a choice ("auto",
     "auto:0.95", "auto:rule").
Out: the same questions, at budgets alone. A question that was settled is answered like one that was
     asked at these budgets by hand, from the same cache and store.
"""

from collections.abc import Sequence
from dataclasses import replace

from m3.evaluation.answering.feature_cache import PictureCache
from m3.evaluation.answering.questions import Question, View, joined_setting
from m3.inference.budget_choice import checked_choice, choose_budgets
from m3.model import M3Config
from m3.nesting import Budget, get_nesting
from m3.processing.control_tokens import encode_fenced
from m3.processing.processor import M3Processor
from m3.processing.scale_policy import Auto, Fixed, PerFrame, read_policy


def settle(
    questions: Sequence[Question], pictures: PictureCache, batch_size: int
) -> list[Question]:
    """The questions with budgets as the processor means them: one name for one budget.

    `batch_size`: tiles that the tower sees at a time, where the model's router looks at pictures.

    Raises:
        ValueError: a budget that cannot be reached, `auto` without a router.
    """
    asked_by_auto: dict[int | str, list[int]] = {}
    for index, question in enumerate(questions):
        if not question.is_settled and isinstance(read_policy(question.scale), Auto):
            asked_by_auto.setdefault(question.scale, []).append(index)
    scales = {
        index: _asked_scale(question, pictures.processor)
        for index, question in enumerate(questions)
        if question.scale not in asked_by_auto
    }
    for scale, indices in asked_by_auto.items():
        policy = read_policy(scale)
        assert isinstance(policy, Auto)
        chosen = _ask_router([questions[index] for index in indices], policy, pictures, batch_size)
        scales |= {
            index: _joined(budgets, pictures.processor)
            for index, budgets in zip(indices, chosen, strict=True)
        }
    return [replace(question, scale=scales[index]) for index, question in enumerate(questions)]


def _asked_scale(question: Question, processor: M3Processor) -> int | str:
    """The scale of a question that says its budgets itself, or by the sizes of its pictures."""
    if question.is_settled:
        return joined_setting([processor.budget(word) for word in str(question.scale).split(",")])
    sizes = [(picture.image.height, picture.image.width) for picture in question.pictures]
    budgets = processor.policy_budgets(question.scale, sizes)
    return _joined([budget for budget in budgets if budget is not None], processor)


def _joined(budgets: Sequence[Budget], processor: M3Processor) -> int | str:
    """A question without pictures is alike at every budget; it has the largest."""
    return joined_setting(budgets or processor.ladder[-1:])


def _ask_router(
    questions: Sequence[Question], policy: Auto, pictures: PictureCache, batch_size: int
) -> list[list[Budget]]:
    """Budgets of the pictures of each question, by the model's router."""
    model, tokenizer = pictures.model, pictures.processor.tokenizer
    side = checked_choice(model.config, policy).view
    views = [View(p, resolution=side) for question in questions for p in question.pictures]
    pictures.see(views, batch_size)
    prompts = [
        prompt
        for question in questions
        for prompt in [encode_fenced(tokenizer, question.text)] * len(question.pictures)
    ]
    chosen = iter(choose_budgets(model, policy, pictures.features(views), prompts))
    return [[next(chosen) for _ in question.pictures] for question in questions]


def check_setting(config: M3Config, setting: int | str) -> None:
    """A `ValueError` for budgets out of a model's reach, or `auto` without a router."""
    policy = read_policy(setting)
    if isinstance(policy, Auto):
        checked_choice(config, policy)
    elif isinstance(policy, Fixed):
        check_budget(config, policy.budget)
    elif isinstance(policy, PerFrame):
        for budget, _ in policy.steps:
            check_budget(config, budget)


def check_budget(config: M3Config, budget: Budget) -> None:
    """A `ValueError` for a resolution that a model cannot see, or tokens that it cannot reach."""
    largest = largest_resolution(config)
    if budget.resolution is not None and budget.resolution > largest:
        raise ValueError(f"{budget}: the model sees images of at most {largest} pixels")
    get_nesting(config.nesting.kind).count(config.grid_at(budget.resolution), budget.tokens)
    config.tiles(budget.resolution)


def largest_resolution(config: M3Config) -> int:
    """The resolution in pixels of budgets that name none."""
    return config.tiling.largest_resolution(config.tile_side(None))
