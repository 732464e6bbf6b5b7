"""Model of a run: weights, parts and learning rates, adapters, kernels, attention."""
