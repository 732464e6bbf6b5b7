"""Choice of a budget by the model's router: see cheaply, choose, and only then see what was chosen.

in:  a model with a router, pictures, the prompt's ids with one placeholder per image, `auto`;
out: a budget per picture. Each picture is looked at by itself, together with the whole prompt.
"""

from collections.abc import Sequence

import torch

from m3.inference.image_features import VisualFeatures
from m3.model import M3ForConditionalGeneration
from m3.model.backbone import NO_ROUTER
from m3.nesting import Budget
from m3.processing import M3Processor
from m3.processing.scale_policy import Auto


def choose_budgets(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    policy: Auto,
    visual: VisualFeatures,
    prompt_ids: Sequence[int],
) -> list[Budget]:
    """The budget of each picture of a still or video. Views that were seen are kept in `visual`.

    Raises:
        ValueError: a model without a router, or a share that it was not calibrated for.
    """
    choice = model.config.budget_choice
    if choice is None:
        raise ValueError(NO_ROUTER)
    choice.threshold(policy.certainty)  # refused before anything is seen
    words = [token for token in prompt_ids if token != model.config.image_token_id]
    views = visual.see(model, processor, [choice.view] * len(visual.pictures))
    tokens = torch.cat([view.tokens for view in views])
    assert len(tokens) == len(views), "the cheapest view of an image is one tile"
    values = model.model.predict_values(tokens, [words] * len(views))
    return [choice.choose(row, policy.certainty) for row in values.tolist()]
