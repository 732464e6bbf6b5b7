"""Self-distillation over scales: what a sample's largest scale predicts at a label token teaches
its coarser copies there.

In: the logits of a batch's label tokens, and of each the position of the same label token at the
largest scale (`teacher_index`, m3/data/multiscale.py). Out: the divergence of each label token that
has a teacher.

Knowledge distillation with a temperature: Hinton, Vinyals and Dean 2015
(https://arxiv.org/abs/1503.02531), section 2. The largest width teaching the smaller ones within a
step: inplace distillation of universally slimmable networks, Yu and Huang 2019
(https://arxiv.org/abs/1903.05134), section 3.3; here a number of visual tokens is the width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div


@dataclass(frozen=True)
class Distillation:
    """Request for distillation in one forward pass.

    `teacher_index`: of each token the position in the batch, read row by row, of
    the label token that teaches it, -1 where none does. `weight`: of the divergence in the loss.
    """

    teacher_index: Int[Tensor, "b l"]
    weight: float
    temperature: float


def teachers(
    is_target: Bool[Tensor, "b l_minus_1"], teacher_index: Int[Tensor, "b l"]
) -> tuple[Bool[Tensor, " n"], Int[Tensor, " k"]]:
    """Find the teachers of the `n` label tokens (`is_target[:, c]`: token c + 1 is one): which of
    them have one, and which of the `n` it is.

    Raises:
        ValueError: a teacher that is no label token of the batch.
    """
    rows, columns = is_target.nonzero(as_tuple=True)
    length = teacher_index.shape[1]
    number_of = torch.full((teacher_index.numel(),), -1, dtype=torch.long, device=is_target.device)
    number_of[rows * length + columns + 1] = torch.arange(len(rows), device=is_target.device)
    wanted = teacher_index[rows, columns + 1]
    is_student = wanted >= 0
    found = number_of[wanted[is_student]]
    if bool((found < 0).any()):
        raise ValueError(
            f"teacher_index points {int((found < 0).sum())} label tokens at positions that are no "
            "label tokens of this "
            "batch; give the batch as the collator made it, with all its rows"
        )
    return is_student, found


def divergences(
    logits: Float[Tensor, "n vocab"],
    is_student: Bool[Tensor, " n"],
    teacher: Int[Tensor, " k"],
    temperature: float,
) -> Float[Tensor, " k"]:
    """KL(teacher || student) over the vocabulary, in nats, times the squared temperature, so that
    its gradient keeps its
    size (Hinton et al., section 2). No gradient reaches the teacher."""
    soft = (logits.float() / temperature).log_softmax(-1)
    target = soft.detach()[teacher]
    return (
        kl_div(soft[is_student], target, reduction="none", log_target=True).sum(-1) * temperature**2
    )
