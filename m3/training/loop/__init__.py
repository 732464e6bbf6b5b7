"""Training itself: trainer, metrics, processes, the run folder, the tower stage."""
