"""Numbers that a task's foreign code gives: Python's, numpy's and torch's scalars alike.

Stands alone because every place that reads a score must take the same things for a number.
"""

from decimal import Decimal
from numbers import Real

import numpy as np
import torch


def as_number(value: object) -> float | None:
    """A real number of any kind (of numpy, torch, fractions, decimal; True as 1) as a float; None
    for anything else.

    Arrays and tensors are numbers where they have no axes. What is not finite stays so: callers say
    what becomes of it.
    """
    if value is np.ma.masked:  # an array without axes that says 0, and means nothing
        return None
    if isinstance(value, torch.Tensor | np.generic | np.ndarray):
        value = value.item() if value.ndim == 0 else None
    return float(value) if isinstance(value, Real | Decimal) else None
