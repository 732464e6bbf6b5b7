"""The engine that answers a sweep's questions in batches of mixed budgets."""
