"""Scores, means, the oracle, calibration and differences, computed from a run folder."""
