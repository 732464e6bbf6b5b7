"""The side that speaks to lmms-eval: our model, its tasks, their data, and scoring."""
