"""Losses that keep a mixture-of-experts router healthy, per layer, over the real tokens of all
scales together.

Balance (Switch Transformer, https://arxiv.org/abs/2101.03961, eq. 4 to 6, with k choices per
token):
    E * sum_e f_e * P_e,   f_e: share of the choices that fall on expert e,   P_e: mean router probability of e;
1 when perfectly balanced, E at worst, whatever k. Only P_e carries gradient. z-loss (ST-MoE,
https://arxiv.org/abs/2202.08906, eq. 5): mean of logsumexp(logits)^2; keeps logits small. Aria adds
them per layer with weights 1e-4 and 1e-5 (https://arxiv.org/abs/2410.05993;
`aria/model/moe_lm.py`).

Balance is a product of two means, and those of micro-batches do not add up to that of a step. With
`step` it becomes linear in the tokens: f is given (Trainer passes the load of the step before, over
all micro-batches and devices) and both sums are divided by the tokens of the whole step. Then the
micro-batches' losses and gradients add up to the step's, however it is split. Load over the whole
batch rather than over each device's part is what *Demons in the Detail*
(https://arxiv.org/abs/2501.11873) trains with.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class RouterStep:
    """Router statistics of a whole optimiser step: `load` stands for f, `tokens` is the number of
    real tokens in it.
    """

    load: Float[Tensor, "layers experts"]
    tokens: Float[Tensor, ""]


@dataclass(frozen=True)
class RouterLosses:
    """One value per decoder layer, and the share of choices each expert received (rows sum to
    1).
    """

    balance: Float[Tensor, " layers"]
    z: Float[Tensor, " layers"]
    expert_load: Float[Tensor, "layers experts"]


def router_losses(
    router_logits: tuple[Float[Tensor, "tokens experts"], ...],
    top_k: int,
    is_real: Bool[Tensor, " tokens"],
    step: RouterStep | None = None,
) -> RouterLosses:
    """Balance and z losses of every layer; `is_real` leaves padding out.

    With `step`, this micro-batch's part of its losses.
    """
    real = is_real.to(torch.float32)[:, None]
    number = real.sum().clamp(min=1)  # a batch may be all padding
    divisor = number if step is None else step.tokens
    balance, z, load = [], [], []
    for layer, logits in enumerate(router_logits):
        logits = logits.float()
        experts = logits.shape[-1]
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(top_k, dim=-1).indices, 1.0)
        share = (chosen * real).sum(0) / (number * top_k)
        falls = share if step is None else step.load[layer]
        balance.append(experts * (falls * (logits.softmax(-1) * real).sum(0) / divisor).sum())
        z.append((logits.logsumexp(-1, keepdim=True).square() * real).sum() / divisor)
        load.append(share)
    return RouterLosses(torch.stack(balance), torch.stack(z), torch.stack(load))
