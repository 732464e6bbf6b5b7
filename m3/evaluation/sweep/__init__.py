"""`m3 sweep`: models x methods x budgets x tasks."""
