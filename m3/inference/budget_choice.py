"""Choice of a budget by the model's router: see cheaply, choose, and only then see what was chosen.

in:  a model with a router, the cheapest view of each picture, the ids of the prompt that shows it, the
     share of the score that `auto` is to keep;
out: a budget per picture. Each picture is looked at by itself, together with the whole prompt.
"""

from collections.abc import Iterable, Sequence

import torch

from m3.inference.image_features import PictureFeatures
from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.backbone import NO_ROUTER
from m3.model.budgets import BudgetChoice
from m3.model.budgets.router import MAX_WORDS
from m3.nesting import Budget, Tiles
from m3.processing.scale_policy import Auto


def checked_choice(config: M3Config, policy: Auto) -> BudgetChoice:
    """The model's choice, before anything is seen.

    Raises:
        ValueError: a model without a router, or a share that it was not calibrated for.
    """
    choice = config.budget_choice
    if choice is None:
        raise ValueError(NO_ROUTER)
    choice.price(policy.keep)
    return choice


def check_views(tiles: Iterable[Tiles]) -> None:
    """A `ValueError` where the cheapest view of an image is more than the one tile a router looks at."""
    most_tiles = max((view_tiles.number for view_tiles in tiles), default=1)
    if most_tiles > 1:
        raise ValueError(
            f"the router looks at one tile, but an image is {most_tiles} at its cheapest view: give a "
            "number of visual tokens such as 36"
        )


def choose_budgets(
    model: M3ForConditionalGeneration,
    policy: Auto,
    views: Sequence[PictureFeatures],
    prompts: Sequence[Sequence[int]],
) -> list[Budget]:
    """The budget of each picture; `views`: seen at the choice's `view`. `prompts`: the ids of the
    prompt that shows each, with or without placeholders.

    A prompt's numbers do not depend on those beside it: it is read without padding, and no further
    back than the router reads.

    Raises:
        ValueError: as in `checked_choice` and `check_views`.
    """
    choice, image_token = checked_choice(model.config, policy), model.config.image_token_id
    check_views(view.tiles for view in views)
    words = [[token for token in prompt if token != image_token][-MAX_WORDS:] for prompt in prompts]
    budgets: list[Budget | None] = [None] * len(views)
    for length in sorted({len(prompt) for prompt in words}):
        alike = [place for place, prompt in enumerate(words) if len(prompt) == length]
        tokens = torch.cat([views[place].tokens for place in alike])
        values = model.model.predict_values(tokens, [words[place] for place in alike])
        for place, row in zip(alike, values.tolist(), strict=True):
            budgets[place] = choice.choose(row, policy.keep)
    return [budget for budget in budgets if budget is not None]
