"""Fitting of a router to outcomes: all targets are tried on the same samples, the cheapest is kept.

in:  a model, outcomes to learn from, and outcomes held out for the calibration;
out: `FittedRouter`s, one per target, each calibrated, in the order of what their choices cost.

A router is small and its inputs are kept from when the questions were asked, so an epoch takes a
second; the epoch with the least loss on a tenth of the samples is taken.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from m3.model.budgets import BudgetChoice, BudgetRouter
from m3.model.budgets.choice import DEFAULT_KEEP
from m3.model.budgets.router import VALUES
from m3.training.budget_router.calibration import ChoiceCost, ChosenMeans, calibrate, chosen_means
from m3.training.budget_router.outcomes import Outcomes
from m3.training.budget_router.targets import TARGETS

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class FitSettings:
    """`learning_rate`: the highest of AdamW's, which rises and falls once. `seed`: of the first
    weights, of the validation's samples and of the batches.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class FittedRouter:
    """A router that was fitted to one target, with its calibration (`choice.prices`)."""

    router: BudgetRouter
    choice: BudgetChoice
    means: tuple[ChosenMeans, ...]

    @property
    def flops(self) -> float:
        """Operations of its choices at the default share; what routers are compared by."""
        return next(means.flops for means in self.means if means.share >= DEFAULT_KEEP)


class WordTable(nn.Module):
    """Embeddings of prompts, looked up batch by batch; words stand at the end of their row."""

    def __init__(self, embeddings: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.embeddings = embeddings
        longest = max(len(prompt) for prompt in prompts)
        self.ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        self.is_word = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self.ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            self.is_word[row, longest - len(prompt) :] = True

    @torch.no_grad()
    def forward(self, rows: Tensor) -> tuple[Float[Tensor, "r q d"], Bool[Tensor, "r q"]]:
        return self.embeddings(self.ids[rows]).float(), self.is_word[rows]


def fit_routers(
    embeddings: nn.Module,
    width: int,
    choice: BudgetChoice,
    learned: Outcomes,
    held_out: Outcomes,
    targets: Sequence[str],
    settings: FitSettings,
    cost: ChoiceCost,
) -> list[FittedRouter]:
    """Routers of all targets, cheapest choices first.

    `embeddings`: the decoder's input embeddings. `width`: the decoder's.
    """
    fitted_routers = []
    for target in targets:
        named = replace(choice, target=target)
        router = fit_router(embeddings, width, named, learned, settings)
        values = predict(router, named, embeddings, held_out)
        largest = held_out.budgets.index(max(held_out.budgets))
        prices = calibrate(values, held_out.is_right, choice.costs, largest)
        means = tuple(
            chosen_means(values, held_out.is_right, held_out.budgets, cost, share, price)
            for share, price in prices
        )
        fitted_routers.append(FittedRouter(router, replace(named, prices=prices), means))
    return sorted(fitted_routers, key=lambda fitted: fitted.flops)


def fit_router(
    embeddings: nn.Module,
    width: int,
    choice: BudgetChoice,
    outcomes: Outcomes,
    settings: FitSettings,
) -> BudgetRouter:
    """A new router, fitted to its target on nine tenths of the samples, by the loss on the rest."""
    torch.manual_seed(settings.seed)
    router = BudgetRouter(choice, width)
    router.init_weights(0.02)
    words = WordTable(embeddings, outcomes.prompts)
    loss_of, count = TARGETS[choice.target], len(outcomes)
    order = torch.randperm(count)
    validation_count = max(1, int(count * VALIDATION_SHARE))
    validation, training = order[:validation_count], order[validation_count:]
    optimiser = torch.optim.AdamW(
        router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * -(-len(training) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps
    )
    best_loss, best_weights = float("inf"), deepcopy(router.state_dict())
    for _ in range(settings.epochs):
        router.train()
        for rows in training[torch.randperm(len(training))].split(settings.batch_size):
            loss = loss_of(router(outcomes.view[rows], *words(rows)), outcomes.take(rows))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        router.eval()
        with torch.no_grad():
            outputs = router(outcomes.view[validation], *words(validation))
            validation_loss = float(loss_of(outputs, outcomes.take(validation)))
        if validation_loss < best_loss:
            best_loss, best_weights = validation_loss, deepcopy(router.state_dict())
    router.load_state_dict(best_weights)
    return router.eval()


@torch.no_grad()
def predict(
    router: BudgetRouter, choice: BudgetChoice, embeddings: nn.Module, outcomes: Outcomes
) -> Float[Tensor, "n k"]:
    """Values of every budget for every question, as the model predicts them when it is used."""
    words = WordTable(embeddings, outcomes.prompts)
    outputs = [
        router(outcomes.view[rows], *words(rows)) for rows in torch.arange(len(outcomes)).split(256)
    ]
    return VALUES[choice.target](torch.cat(outputs))
