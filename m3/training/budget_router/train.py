"""`m3 train` of a `BudgetRouterRecipe`: a finished model gets a router that chooses budgets.

in:  a recipe; way: ask the questions of the data at every budget of the ladder -> fit routers to
     what was lost -> calibrate on questions held out -> keep the cheapest;
out: the run folder; `checkpoints/final` is the model with its router, all other weights unchanged,
     `metrics.jsonl` has a line per target and share.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean

import torch

from m3.data.recipe import open_source
from m3.data.sample import Sample
from m3.files import atomic_folder
from m3.model import M3ForConditionalGeneration
from m3.model.budgets import BudgetChoice, BudgetRouter
from m3.model.budgets.choice import DEFAULT_KEEP
from m3.model.cost import CostModel
from m3.nesting import Budget, resolutions
from m3.processing import M3Processor
from m3.training.budget_router.calibration import ChoiceCost
from m3.training.budget_router.fit import FitSettings, FittedRouter, fit_routers
from m3.training.budget_router.outcomes import Outcomes, collect_outcomes, questions_of
from m3.training.loop.distributed import world
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.router_recipe import BudgetRouterRecipe
from m3.training.setup.build import load_checkpoint, read_config

logger = logging.getLogger(__name__)
FEW = 1000
"""Questions held out, below which a share of right answers is off by 3 points or more."""


def train_budget_router(recipe: BudgetRouterRecipe) -> RunFolder:
    """Train the router, or return at once when the run is finished; returns its run folder.

    Raises:
        ValueError: several processes, a model of one budget, too few questions in the data.
    """
    run = RunFolder(recipe.run)
    run.check(recipe)
    if run.is_finished:
        return run
    if world().size > 1:
        raise ValueError(
            "a budget router is trained by one process: it takes minutes. Start `m3 train` without "
            "a launcher"
        )
    run.start(recipe)
    if recipe.hardware.threads is not None:
        torch.set_num_threads(recipe.hardware.threads)
    model, processor = _finished_model(recipe)
    cost_model, settings = CostModel(model), recipe.budget_router
    budgets = _cheapest_first(cost_model, processor, settings.budgets)
    outcomes = collect_outcomes(
        model,
        processor,
        _questions(recipe),
        budgets,
        recipe.samples + recipe.held_out,
        recipe.batch_size,
    )
    fitted_routers = _fit(model, outcomes, recipe, cost_model)
    for fitted in fitted_routers:
        for means in fitted.means:
            run.append_metrics({"target": fitted.choice.target, **means.to_dict()})
    _save(run, model, processor, fitted_routers[0])
    logger.info("%s", _summary(fitted_routers[0], recipe.held_out))
    return run


def _summary(fitted: FittedRouter, held_out: int) -> str:
    """The sentence that tells what `auto` does, by the questions that were held out."""
    means = next(row for row in fitted.means if row.share >= DEFAULT_KEEP)
    few = f" (few: give or take {100 / held_out**0.5:.0f})" if held_out < FEW else ""
    return (
        f"auto: {100 * means.score:.1f} of {100 * means.largest_score:.1f} % right at "
        f"{100 * means.flops / means.largest_flops:.0f} % of the operations of the largest budget, a "
        f"random mixture {100 * means.random_score:.1f}, on {held_out} questions held out{few}"
    )


def _fit(
    model: M3ForConditionalGeneration,
    outcomes: Outcomes,
    recipe: BudgetRouterRecipe,
    cost_model: CostModel,
) -> list[FittedRouter]:
    """Routers of all targets of the recipe, those with the cheapest choices first."""
    settings, view = recipe.budget_router, resolutions(outcomes.budgets)[0]
    words = round(mean(len(prompt) for prompt in outcomes.prompts))
    flops = {
        budget: cost_model.cost(budget, words).first_token_flops for budget in outcomes.budgets
    }
    numbers = torch.arange(len(outcomes))
    learned = outcomes.take(numbers[: recipe.samples])
    places = _worthwhile(learned) if settings.budgets is None else range(len(outcomes.budgets))
    learned, held_out = (
        part.at(places) for part in (learned, outcomes.take(numbers[recipe.samples :]))
    )
    budgets, width = learned.budgets, model.config.text_config.hidden_size
    logger.info("chosen among: %s", ", ".join(map(str, budgets)))
    choice = BudgetChoice(
        budgets=tuple(budget.setting for budget in budgets),
        view=view,
        target=settings.targets[0],
        costs=(0.0,) * len(budgets),  # the router's own are among them
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
    )
    cost = ChoiceCost(
        {budget: flops[budget] for budget in budgets},
        BudgetRouter(choice, width).flops(outcomes.view.shape[1], words),
        cost_model.vision_flops(view) + cost_model.connector_flops(view),
        view,
    )
    return fit_routers(
        model.get_input_embeddings(),
        width,
        replace(choice, costs=cost.shares(budgets)),
        learned,
        held_out,
        settings.targets,
        FitSettings(
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            seed=recipe.seed,
        ),
        cost,
    )


def _worthwhile(outcomes: Outcomes) -> list[int]:
    """Places of the budgets, cheapest first, that score more than every cheaper one, and of the
    largest: others only add to what a router may be wrong about.
    """
    scores = outcomes.is_right.float().mean(0).tolist()
    largest = outcomes.budgets.index(max(outcomes.budgets))
    return [
        place
        for place, score in enumerate(scores)
        if place == largest or score > max(scores[:place], default=-1.0)
    ]


def _finished_model(recipe: BudgetRouterRecipe) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """The model as it is, without a router that it may have already."""
    model, processor = load_checkpoint(
        recipe.model, read_config(recipe.model).nesting.trained_scales
    )
    return model, processor


def _cheapest_first(
    cost_model: CostModel, processor: M3Processor, asked: Sequence[int | str] | None
) -> list[Budget]:
    budgets = [processor.budget(budget) for budget in asked or processor.ladder]
    if len(budgets) < 2:
        raise ValueError(
            f"there is nothing to choose among: the ladder is {', '.join(map(str, budgets))}; train "
            "the model over several budgets first"
        )
    return sorted(budgets, key=lambda budget: cost_model.cost(budget, 0).first_token_flops)


def _questions(recipe: BudgetRouterRecipe) -> Iterator[Sample]:
    """Questions of all sources in turn, so that neither part of the data lacks one of them."""
    sources = [open_source(source) for source in recipe.data.used_sources]
    for index in range(max(len(source) for source in sources)):
        for source in sources:
            if index < len(source):
                yield from questions_of(source[index], recipe.questions == "each")


def _save(
    run: RunFolder, model: M3ForConditionalGeneration, processor: M3Processor, fitted: FittedRouter
) -> None:
    model.config.budget_choice = fitted.choice
    model.model.budget_router = fitted.router
    with atomic_folder(run.final) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
