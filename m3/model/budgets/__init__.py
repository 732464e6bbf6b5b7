"""The model's own choice of a budget: a router that predicts what each budget of the ladder loses."""

from m3.model.budgets.choice import BudgetChoice, decode_choice
from m3.model.budgets.router import BudgetRouter

__all__ = ["BudgetChoice", "BudgetRouter", "decode_choice"]
