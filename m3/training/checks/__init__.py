"""Checks around a run: the plan, fingerprints, resuming, and the data before training."""
