"""What a router learns to predict of each budget, as a table: the loss of its outputs against what
the model made of the questions.

    score     whether the answer would be wrong (binary cross-entropy)
    loss_gap  the answer's loss above that of the best budget (Huber's loss, gaps up to 4)
    ratio     whether the loss is more than 1.5 times the largest budget's (ViCO, InternVL3.5,
              https://arxiv.org/abs/2508.18265, which labels by the ratio of two losses)
    ranking   the budgets in the order of their losses (cross-entropy with the softmax of the negative
              losses: AVG-LLaVA, https://arxiv.org/abs/2410.02745, ranks by the decoder's likelihood)
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from m3.training.budget_router.outcomes import Outcomes

WORST_GAP = 4.0
"""Nats: an answer is as good as lost there, and more would only drown the rest."""
TOLERATED_RATIO, SMALLEST_LOSS = 1.5, 0.05

TargetLoss = Callable[[Tensor, Outcomes], Tensor]


def _score(outputs: Float[Tensor, "n k"], outcomes: Outcomes) -> Float[Tensor, ""]:
    return binary_cross_entropy_with_logits(outputs, (~outcomes.is_right).float())


def _loss_gap(outputs: Float[Tensor, "n k"], outcomes: Outcomes) -> Float[Tensor, ""]:
    gaps = outcomes.losses - outcomes.losses.amin(1, keepdim=True)
    return smooth_l1_loss(outputs, gaps.clamp(max=WORST_GAP))


def _ratio(outputs: Float[Tensor, "n k"], outcomes: Outcomes) -> Float[Tensor, ""]:
    losses = outcomes.losses.clamp(min=SMALLEST_LOSS)
    largest = losses[:, [outcomes.budgets.index(max(outcomes.budgets))]]
    return binary_cross_entropy_with_logits(outputs, (losses > TOLERATED_RATIO * largest).float())


def _ranking(outputs: Float[Tensor, "n k"], outcomes: Outcomes) -> Float[Tensor, ""]:
    return cross_entropy(-outputs, torch.softmax(-outcomes.losses, dim=1))


TARGETS: Mapping[str, TargetLoss] = {
    "score": _score,
    "loss_gap": _loss_gap,
    "ratio": _ratio,
    "ranking": _ranking,
}
